"""The `teacher` block: the frozen CLIP model that is distilled."""

from pipeline.params.block import Block, Text
from pipeline.params.places import PathText


class TeacherParams(Block):
    """A teacher by its open_clip name."""

    model: PathText = "local-dir:data/demo/teacher"
    """open_clip architecture (`ViT-L-14`), `hf-hub:ORG/NAME` or `local-dir:PATH`."""
    pretrained: Text | None = None
    """open_clip weights tag (`openai`); null where `model` names its own weights."""
