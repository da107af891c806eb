"""What the families share: weights and samples by formula, and digests."""

import mlx.core as mx
import numpy as np
from reference import formula

# Factors and frequencies that must be positive.
POSITIVE = ("weight_g", "original0", "alpha", "beta", "cluster_usage", "gamma")


def entry(name: str, shape: tuple[int, ...]) -> list | dict:
    if name.split(".")[-1] in POSITIVE or name.endswith("layer_scale.scale"):
        return dict(shape=list(shape), dtype="F32", **{"from": 0.5, "to": 1.0})
    return list(shape)


def entries(shapes: dict[str, tuple[int, ...]]) -> dict:
    return {name: entry(name, shape) for name, shape in shapes.items()}


def torch_entries(model) -> dict:
    return entries({name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()})


def values(tensors: dict) -> dict[str, np.ndarray]:
    return {name: value(name, tensor) for name, tensor in tensors.items()}


def value(name: str, tensor: list | dict) -> np.ndarray:
    """By the formula, and with the elements that the tensor sets by their flat index."""
    array = np.array(formula(name, tensor))
    for place, element in tensor.get("set", []) if isinstance(tensor, dict) else []:
        array.reshape(-1)[place] = element
    return array


def load_torch(model, tensors: dict):
    import torch

    state = model.state_dict()
    state |= {name: torch.tensor(value) for name, value in values(tensors).items()}
    model.load_state_dict(state)
    return model.eval()


def load_mlx(model, tensors: dict):
    weights = [(name, mx.array(value)) for name, value in values(tensors).items()]
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model.eval()


def mlx_entries(model) -> dict:
    from mlx.utils import tree_flatten

    return entries({name: tuple(value.shape) for name, value in tree_flatten(model.parameters())})


def samples(count: int, channels: int = 1) -> np.ndarray:
    """White noise `[count, channels]`."""
    return np.array(formula("samples", dict(shape=[count, channels], dtype="F32", **{"from": -0.5, "to": 0.5})))


def codes(books: int, frames: int, entries: int) -> np.ndarray:
    return np.array(formula("codes", dict(shape=[books, frames], dtype="U32", **{"from": 0, "to": entries})))


def features(frames: int, bins: int) -> np.ndarray:
    return np.array(formula("features", dict(shape=[frames, bins], dtype="F32", **{"from": -2.0, "to": 2.0})))


def digest(x) -> dict:
    x = np.asarray(x, dtype=np.float64)
    flat = x.reshape(-1)
    assert np.isfinite(flat).all()
    picked = flat[[i * (flat.size - 1) // 31 for i in range(32)]]
    return dict(
        shape=list(x.shape), mean=float(flat.mean()), std=float(flat.std()), samples=picked.round(7).tolist()
    )
