"""Named settings of params.yaml: methods and data sets."""
