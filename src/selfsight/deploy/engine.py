"""What computes with an exported network: ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from selfsight.errors import DataError, MachineError, first_line
from selfsight.machine import usable_cores


class Engine:
    """An ONNX network that selfsight wrote, ready to run. It may be called from several threads.

    metadata: what the file says of itself, as text by name. inputs: {name: numpy dtype} of what it takes, `pixels`
    [B, C, H, W] of own depth and, of an inspection, `looked` [B, H, W] bool. outputs: the names of what it gives.
    """

    def __init__(self, path: Path | bytes, threads: int | None = None) -> None:
        """path: of the file, or what it holds. threads: to compute with; None for those that OMP_NUM_THREADS says, or
        one on each core that this process may use.

        Raises `MachineError` without ONNX Runtime, `DataError` for a file that is no network.
        """
        try:
            import onnxruntime
        except ImportError:
            raise MachineError("ONNX Runtime is not installed. Run: pip install 'selfsight[export]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or _usual_threads()
        options.inter_op_num_threads = 1
        try:
            network = path if isinstance(path, bytes) else str(path)
            self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a damaged file raises many kinds
            name = "It" if isinstance(path, bytes) else path
            raise DataError(f"{name} cannot be read as an ONNX network: {first_line(error)}") from None
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs = {one.name: _dtype(one.type) for one in self._session.get_inputs()}
        self.outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, pixels: np.ndarray, looked: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The named tensors of pixels [B, C, H, W] of own depth. looked: [B, H, W] bool, of an inspection, which pixels
        count; all if not given."""
        given = {"pixels": pixels}
        if "looked" in self.inputs:
            size = (len(pixels), *pixels.shape[2:])
            given["looked"] = np.ones(size, bool) if looked is None else looked
        return self.run(given)

    def run(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The named tensors of what it takes, by name."""
        inputs = {name: np.ascontiguousarray(value, self.inputs[name]) for name, value in given.items()}
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))


def _usual_threads() -> int:
    """Of ONNX Runtime's own default some would be on cores that this process may not use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else usable_cores()


def _dtype(kind: str) -> np.dtype:
    """The numpy dtype of ONNX Runtime's name for a tensor's type."""
    names = {"tensor(float)": "float32", "tensor(bool)": "bool"}
    return np.dtype(names.get(kind, kind.removeprefix("tensor(").removesuffix(")")))
