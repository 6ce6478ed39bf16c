"""A search page and its JSON API, served on this machine; reads artefacts and changes nothing."""
