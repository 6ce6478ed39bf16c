"""Images by row, without what encodes them."""

import subprocess
import sys

from tests.conftest import ROOT


def test_showing_pictures_needs_no_torch():
    code = "import pipeline.search.gallery, sys; assert not {'torch', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
