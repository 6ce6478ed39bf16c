"""The `teacher` block: the frozen CLIP model that is distilled."""

from typing import Annotated

from pydantic import Field

from pipeline.config import Block


class TeacherParams(Block):
    """A teacher by its open_clip name."""

    model: Annotated[str, Field(min_length=1)]
    """open_clip architecture (`ViT-L-14`), `hf-hub:ORG/NAME` or `local-dir:PATH`."""
    pretrained: str | None = None
    """open_clip weights tag (`openai`); null where `model` names its own weights."""
