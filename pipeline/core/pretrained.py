"""Folders of transformers models: which weights they hold, and which cannot be read."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import ModelError

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ADAPTER = "adapter_config.json"
_OTHERS = {
    "TensorFlow": ("tf_model.h5", "tf_model.h5.index.json", "model.ckpt.index"),
    "Flax": ("flax_model.msgpack", "flax_model.msgpack.index.json"),
    "ONNX": ("*.onnx", "onnx/*.onnx"),
    "OpenVINO": ("openvino_model.xml", "openvino/*.xml"),
    "GGUF": ("*.gguf",),
}
"""Weights of other libraries."""
LOAD_HINT = (
    "check the path or hub name and that config.json, the weights (model.safetensors) and the "
    "tokenizer files are there; if a hub model only has pytorch_model.bin, download the folder "
    "(`hf download NAME --local-dir FOLDER`) and name that folder."
)


def is_pickled(name: str | Path) -> bool:
    """Whether a folder has its weights only in PyTorch's own format.

    These are loaded with `weights_only`, which unpickles nothing but tensors.

    Args:
        name: the folder that holds the model; a hub name is never looked up.

    Raises:
        ModelError: it is an adapter, or only holds weights of other libraries.
    """
    folder = Path(name)
    if not folder.is_dir():
        return False
    if (folder / _ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds an adapter ({_ADAPTER}), which is not supported.",
            "merge it into its model (peft's merge_and_unload) and name the folder of the result.",
        )
    if _has(folder, _SAFE):
        return False
    if not (pickled := _has(folder, _PICKLED)):
        _refuse_other_libraries(folder)
    return pickled


def _refuse_other_libraries(folder: Path) -> None:
    for library, names in _OTHERS.items():
        if _has(folder, names):
            raise ModelError(
                f"{folder} only holds weights of {library}.",
                "put the model's model.safetensors or pytorch_model.bin into the folder.",
            )


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any(path.is_file() for name in names for path in folder.glob(name))
