"""Folders of transformers models: which weights they hold, and which cannot be read."""

from pathlib import Path

from pipeline.core.errors import ModelError

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
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
    """Whether a folder has its weights only in PyTorch's own format; a hub name has not.

    These are loaded with `weights_only`, which unpickles nothing but tensors.

    Raises:
        ModelError: it is an adapter, or only holds weights of other libraries.
    """
    folder = Path(name)

    def holds(*names: str) -> bool:
        return any(path.is_file() for name in names for path in folder.glob(name))

    if not folder.is_dir():
        return False
    if holds("adapter_config.json"):
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), which is not supported.",
            "merge it into its model (peft's merge_and_unload) and name the folder of the result.",
        )
    others = [library for library, names in _OTHERS.items() if holds(*names)]
    if others and not holds(*_SAFE, *_PICKLED):
        raise ModelError(
            f"{folder} only holds weights of {others[0]}.",
            "put the model's model.safetensors or pytorch_model.bin into the folder.",
        )
    return holds(*_PICKLED) and not holds(*_SAFE)
