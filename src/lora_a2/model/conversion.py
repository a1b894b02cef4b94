"""Transformers folders out of files that Transformers cannot train from, or cannot read."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

from lora_a2.errors import ModelError

_WANTED = (".json", ".txt", ".safetensors")


def from_gguf(files: Sequence[Path], out: Path) -> None:
    """A causal language model in one GGUF file, its quantised weights as float32, with its tokenizer and chat template.

    Raises:
        ModelError: Transformers cannot read it.
    """
    import torch  # here, since all that asks where a model is imports this module
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from lora_a2.engine.calling import first_line
    from lora_a2.model.checkpoint import quiet

    (path,) = files
    with quiet(), redirect_stderr(io.StringIO()):  # one of its progress bars listens to nothing
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        except Exception as error:  # whatever its readers come upon
            raise ModelError(f"{path} cannot be read by Transformers: {first_line(error)}") from error
        # What was read from GGUF refuses to be saved, although its weights are plain by now: they move into a plain model.
        own = ("quantization_config", "_model_name_or_path")
        values = {key: value for key, value in quantised.config.to_dict().items() if key not in own}
        with torch.device("meta"):
            plain = type(quantised)(type(quantised.config).from_dict(values))
        plain.load_state_dict(quantised.state_dict(), assign=True)
        plain.tie_weights()
        ends = {key: values[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        plain.generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)


def from_parts(files: Sequence[Path], out: Path) -> None:
    """A Transformers folder in a zip file that was cut into parts.

    Raises:
        ModelError: they are no zip file with one folder in it.
    """
    with tempfile.TemporaryFile(dir=out.parent) as whole:
        for part in files:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
        try:
            with zipfile.ZipFile(whole) as archive:
                for entry in archive.infolist():
                    _, _, name = entry.filename.partition("/")
                    if name.endswith(_WANTED):
                        _unpack(archive, entry, out / name)
        except (zipfile.BadZipFile, ValueError) as error:
            raise ModelError(f"{files[0]} and its other parts are no zip file: {error}.") from error


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    if ".." in path.parts:
        raise ValueError(f"it holds {entry.filename}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)
