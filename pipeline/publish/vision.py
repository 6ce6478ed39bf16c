"""The teacher's image tower and the student's image head, for others to run.

As modules of sentence-transformers where transformers has such a tower: CLIP's and SigLIP's, and
open_clip's vision transformers, which are CLIP's under other names. Any other as an ONNX graph.
"""

import re
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
)

from pipeline.features.teacher import Teacher
from pipeline.student.encoder import GroundingHeads, Head
from pipeline.student.export import export_graph

PIXELS, VECTORS = "pixel_values", "images"
"""Names of the graph's input and output."""

_NAMES = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding", "embeddings.class_embedding"),
    (r"^positional_embedding", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""What open_clip's weights are called in transformers."""
_POOLED = {"image": {"method": "forward", "method_output_name": "pooler_output"}}


class NotExpressibleError(Exception):
    """Why a tower, or what is done to its pictures, cannot be modules of others."""


def image_modules(teacher: Teacher, heads: GroundingHeads) -> list[nn.Module]:
    """From a picture to its vector in the shared space.

    Raises:
        NotExpressibleError: transformers has no such tower or image processor.
    """
    tower, projection = _read_tower(teacher.model)
    projected = [] if projection is None else [as_dense(projection)]
    width = heads.dims[1]  # of features, which the head reads at a root mean square of 1
    head = as_dense(heads.image, width**0.5) if isinstance(heads.image, Head) else None
    after = [] if head is None else [head, Normalize()]
    return [_as_transformer(tower, image_processor(teacher)), *projected, Normalize(), *after]


def as_dense(layer: nn.Module, scale: float = 1.0) -> Dense:
    """A head, or a linear layer, whose input is to be multiplied by `scale`."""
    linear = cast(nn.Linear, layer[0] if isinstance(layer, Head) else layer)
    return Dense(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        activation_function=nn.Tanh() if isinstance(layer, Head) else nn.Identity(),
        init_weight=linear.weight.detach() * scale,
        init_bias=None if linear.bias is None else linear.bias.detach(),
    )


def image_processor(teacher: Teacher) -> Any:
    """What transformers calls the teacher's transform.

    Raises:
        NotExpressibleError: it has none for it.
    """
    model = teacher.model
    if isinstance(model, PreTrainedModel):
        return cast(Any, AutoImageProcessor).from_pretrained(
            model.name_or_path, trust_remote_code=False
        )
    config = model.visual.preprocess_cfg
    size, mode = config["size"], config["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    if mode == "longest" or (mode == "shortest" and height != width):
        msg = f"transformers has no image processor that resizes to {mode} {height} x {width}"
        raise NotExpressibleError(msg)
    whole = {"height": height, "width": width}
    return CLIPImageProcessorPil(
        size=whole if mode == "squash" else {"shortest_edge": height},
        do_center_crop=mode != "squash",
        crop_size=whole,
        resample=2 if config["interpolation"] == "bilinear" else 3,  # Pillow's numbers
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )


class _ToShared(nn.Module):
    """From the input of a teacher's image tower to the shared space."""

    def __init__(self, teacher: Teacher, heads: GroundingHeads) -> None:
        super().__init__()
        self.model, self.heads = teacher.model, heads

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.heads.ground_images(self.model.encode_image(pixel_values, normalize=False))


def write_graph(teacher: Teacher, heads: GroundingHeads, folder: Path) -> None:
    """Write the image tower of an open_clip teacher as model.onnx, with its image processor.

    Raises:
        NotExpressibleError: transformers has no such image processor.
        ValueError: the tower does not fit one ONNX file.
    """
    processor = image_processor(teacher)
    folder.mkdir()
    processor.save_pretrained(folder)
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    pixels = {PIXELS: torch.zeros(2, 3, height, width)}
    graph = folder / "model.onnx"
    export_graph(_ToShared(teacher, heads), pixels, graph, outputs=(VECTORS,), free=(0,))


def _as_transformer(tower: PreTrainedModel, processor: Any) -> Transformer:
    with tempfile.TemporaryDirectory() as folder:
        tower.save_pretrained(folder)
        processor.save_pretrained(folder)
        module: Transformer = Transformer(
            folder,
            modality_config=cast(Any, _POOLED),
            module_output_name="sentence_embedding",
            processor_kwargs={"backend": processor.backend},
        )
        return module


def _read_tower(model: Any) -> tuple[PreTrainedModel, nn.Linear | None]:
    """A tower whose pooled output is the feature, or what the linear layer makes the feature of."""
    if isinstance(model, PreTrainedModel):
        return cast(Any, model).vision_model, getattr(model, "visual_projection", None)
    kind = type(model.visual).__name__
    if kind != "VisionTransformer":
        msg = f"transformers has no image tower like this one of open_clip ({kind})"
        raise NotExpressibleError(msg)
    try:
        return _as_clip(model.visual)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        msg = "CLIP of transformers lacks a part of this vision transformer of open_clip"
        raise NotExpressibleError(msg) from error


def _as_clip(visual: Any) -> tuple[PreTrainedModel, nn.Linear]:
    block, weights = visual.transformer.resblocks[0], visual.state_dict()
    projection = weights.pop("proj").T.contiguous()
    config = CLIPVisionConfig(
        hidden_size=visual.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=visual.patch_size[0],
        projection_dim=len(projection),
        hidden_act="quick_gelu" if type(block.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        layer_norm_eps=visual.ln_post.eps,
    )
    tower = cast(nn.Module, CLIPVisionModel(config)).eval()
    tower.load_state_dict(_renamed(weights))
    linear = nn.Linear(projection.shape[1], projection.shape[0], bias=False)
    linear.load_state_dict({"weight": projection})
    return cast(PreTrainedModel, tower), linear


def _renamed(weights: dict[str, Tensor]) -> dict[str, Float[Tensor, "..."]]:
    found = {}
    for name, weight in weights.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)  # noqa: PLW2901
        if ".in_proj_" in name:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                found[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            found[name] = weight
    return found
