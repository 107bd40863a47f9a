"""Files as Keras writes them of vit-keras's ViTs, in each of its layouts, and what they predict, by numpy alone."""

import base64
import json
import marshal
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import h5py
import numpy as np
from scipy.special import erf

Weights = dict[str, np.ndarray]
LAYOUTS = ("keras2-model", "keras2-weights", "keras3-model", "keras3-weights")


@dataclass(frozen=True)
class MadeViT:
    """A small ViT as vit-keras makes it. Names of weights are those of vit-keras 0.1, without the `:0` of Keras 2."""

    head: str = "mlp"
    activation: str = "gelu"
    """Of the head's first layer, as Keras writes it."""
    image: int = 32
    patch: int = 8
    width: int = 128
    depth: int = 2
    heads: int = 2
    mlp: int = 96
    outputs: int = 3
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(7)
        dense: list[tuple[str, int, int]] = []
        for block in range(self.depth):
            name = f"Transformer/encoderblock_{block}"
            for part in ("query", "key", "value", "out"):
                dense.append((f"{name}/MultiHeadDotProductAttention_1/{part}", self.width, self.width))
            dense += [(f"{name}/Dense_0", self.width, self.mlp), (f"{name}/Dense_1", self.mlp, self.width)]
        hidden = [("dense", self.width, 32)] if self.head == "mlp" else []
        last = "dense_1" if self.head == "mlp" else "head"
        dense += [*hidden, (last, hidden[0][2] if hidden else self.width, self.outputs)]
        for name, inputs, outputs in dense:
            self.weights[f"{name}/kernel"] = generator.normal(0, 1.5 / inputs**0.5, (inputs, outputs))
            self.weights[f"{name}/bias"] = generator.normal(0, 0.3, outputs)
        norms = [f"Transformer/encoderblock_{block}/LayerNorm_{n}" for block in range(self.depth) for n in (0, 2)]
        for name in (*norms, "Transformer/encoder_norm"):
            self.weights[f"{name}/gamma"] = generator.normal(1, 0.3, self.width)
            self.weights[f"{name}/beta"] = generator.normal(0, 0.3, self.width)
        patches = (self.image // self.patch) ** 2
        self.weights["embedding/kernel"] = generator.normal(0, 0.1, (self.patch, self.patch, 3, self.width))
        self.weights["embedding/bias"] = generator.normal(0, 0.3, self.width)
        self.weights["class_token/cls"] = generator.normal(0, 1, (1, 1, self.width))
        self.weights["Transformer/posembed_input/pos_embedding"] = generator.normal(0, 1, (1, patches + 1, self.width))

    def write(self, path: Path, layout: str, config: str | bytes | None = None) -> Path:
        """The file that Keras would write; `config` stands in for the layers' JSON."""
        with h5py.File(path, "w") as file:
            if layout == "keras3-weights":
                for name, values in self.weights.items():
                    file.create_dataset(self._numbered(name), data=values.astype("f4"))
                # The state of a dropout's random numbers: no weight.
                file["layers/transformer_block/dropout_layer/seed_generator/vars/0"] = np.uint32([1, 2])
                return path
            root = file.create_group("model_weights") if layout.endswith("model") else file
            for name, values in self.weights.items():
                root.create_dataset(self._named(name, layout), data=values.astype("f4"))
            file.attrs["keras_version"] = "2.8.0" if layout.startswith("keras2") else "3.15.1"
            if layout.endswith("model"):
                file.attrs["model_config"] = self.model_config(layout) if config is None else config
                file["optimizer_weights/iteration"] = np.int64(7)
        return path

    def _named(self, name: str, layout: str) -> str:
        """The path of a weight in the layouts that have names; a model within a model is a group of its own."""
        head = name.startswith(("dense", "head"))
        if layout == "keras3-model":
            path = name.replace("Transformer/", "Transformer_")
            if "/Dense_" in path:
                block, dense = path.split("/", 1)
                path = f"{block}/MlpBlock_3/{block}_{dense}"
            if head and self.head == "mlp":
                return f"{name.split('/')[0]}/vision_transformer/{path}"
        else:
            path = f"{name}:0"
        if self.head == "mlp" and not head:
            return f"vit-made/{path}"
        # By layers: the layer's group, and in it the whole name again.
        layer = name.split("/")[0] if not name.startswith("Transformer") else "/".join(name.split("/")[:2])
        return f"{layer.replace('Transformer/', 'Transformer_') if layout == 'keras3-model' else layer}/{path}"

    def _numbered(self, name: str) -> str:
        """The path of a weight where Keras numbers the variables of each layer."""
        layer, variable = name.rsplit("/", 1)
        number = {"kernel": 0, "bias": 1, "gamma": 0, "beta": 1}.get(variable, 0)
        if layer in ("dense", "dense_1", "head"):
            return f"layers/{'dense' if layer == 'head' else layer}/vars/{number}"
        within = "layers/functional/layers" if self.head == "mlp" else "layers"
        plain = {
            "embedding": "conv2d", "class_token": "class_token", "Transformer/posembed_input": "add_position_embs",
            "Transformer/encoder_norm": "layer_normalization",
        }  # fmt: skip
        if layer in plain:
            return f"{within}/{plain[layer]}/vars/{number}"
        _, block, part = layer.split("/", 2)
        index = block.removeprefix("encoderblock_")
        parts = {
            "MultiHeadDotProductAttention_1/query": "att/query_dense",
            "MultiHeadDotProductAttention_1/key": "att/key_dense",
            "MultiHeadDotProductAttention_1/value": "att/value_dense",
            "MultiHeadDotProductAttention_1/out": "att/combine_heads",
            "LayerNorm_0": "layernorm1", "LayerNorm_2": "layernorm2",
            "Dense_0": "mlpblock/layers/dense", "Dense_1": "mlpblock/layers/dense_1",
        }  # fmt: skip
        return f"{within}/transformer_block{'' if index == '0' else f'_{index}'}/{parts[part]}/vars/{number}"

    def layers(self, layout: str = "keras2-model", code: CodeType | None = None) -> dict[str, Any]:
        """The layers as Keras describes them, as far as a reader could look at them."""
        keras3 = layout.startswith("keras3")
        custom, slash = ("Custom>", "_") if keras3 else ("", "/")
        encoded = base64.encodebytes(marshal.dumps(code)).decode() if code else VIT_KERAS_LAMBDA
        function: Any = [encoded, None, None]
        if keras3:
            function = {"class_name": "__lambda__", "config": {"code": encoded, "defaults": None, "closure": None}}
        blocks = [
            layer(f"{custom}TransformerBlock", name=f"Transformer{slash}encoderblock_{block}", num_heads=self.heads,
                  mlp_dim=self.mlp, dropout=0.1)
            for block in range(self.depth)
        ]  # fmt: skip
        body = [
            layer("InputLayer", name="input_1"),
            layer("Conv2D", name="embedding", filters=self.width, activation="linear"),
            layer("Reshape", name="reshape"),
            layer(f"{custom}ClassToken", name="class_token"),
            layer(f"{custom}AddPositionEmbs", name=f"Transformer{slash}posembed_input"),
            *blocks,
            layer("LayerNormalization", name=f"Transformer{slash}encoder_norm", epsilon=1e-6),
            layer("Lambda", name="ExtractToken", function=function, function_type="lambda"),
        ]
        if self.head == "linear":
            top = layer("Dense", name="head", units=self.outputs, activation="softmax")
            return layer("Functional", name="vit-made", layers=[*body, top])
        return layer("Sequential", name="vision_transformer", layers=[
            layer("InputLayer", name="vit-made_input"),
            layer("Functional", name="vit-made", layers=body),
            layer("Dense", name="dense", units=32, activation=self.activation),
            layer("Dense", name="dense_1", units=self.outputs, activation="softmax"),
        ])  # fmt: skip

    def model_config(self, layout: str = "keras2-model") -> str:
        """The same, as the JSON of the file."""
        return json.dumps(self.layers(layout))

    def probabilities(self, pixels: np.ndarray, approximate: bool = False) -> np.ndarray:
        """What Keras predicts of pixels `(n, height, width, 3)` that were scaled: float64 `(n, 3)`."""
        weights = self.weights
        side = self.image // self.patch
        cut = pixels.reshape(len(pixels), side, self.patch, side, self.patch, 3)
        x = np.einsum("nipjqc,pqcd->nijd", cut, weights["embedding/kernel"]) + weights["embedding/bias"]
        x = x.reshape(len(pixels), side * side, self.width)
        token = np.broadcast_to(weights["class_token/cls"], (len(pixels), 1, self.width))
        x = np.concatenate([token, x], 1) + weights["Transformer/posembed_input/pos_embedding"]
        for block in range(self.depth):
            name = f"Transformer/encoderblock_{block}"
            normed = self._norm(x, f"{name}/LayerNorm_0")
            query, key, value = (
                self._dense(normed, f"{name}/MultiHeadDotProductAttention_1/{part}")
                .reshape(len(x), -1, self.heads, self.width // self.heads)
                .transpose(0, 2, 1, 3)
                for part in ("query", "key", "value")
            )
            attention = softmax(query @ key.transpose(0, 1, 3, 2) / (self.width // self.heads) ** 0.5)
            mixed = (attention @ value).transpose(0, 2, 1, 3).reshape(x.shape)
            x = x + self._dense(mixed, f"{name}/MultiHeadDotProductAttention_1/out")
            hidden = gelu(self._dense(self._norm(x, f"{name}/LayerNorm_2"), f"{name}/Dense_0"))
            x = x + self._dense(hidden, f"{name}/Dense_1")
        feature = self._norm(x, "Transformer/encoder_norm")[:, 0]
        if self.head == "linear":
            return softmax(self._dense(feature, "head"))
        return softmax(self._dense(gelu(self._dense(feature, "dense"), approximate), "dense_1"))

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(-1, keepdims=True)
        normed = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
        return normed * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]


def layer(kind: str, **settings: Any) -> dict[str, Any]:
    """A layer as Keras describes it."""
    return {"class_name": kind, "config": settings}


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def gelu(x: np.ndarray, approximate: bool = False) -> np.ndarray:
    if approximate:
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / 2**0.5))


# `lambda v: v[:, 0]` as vit-keras 0.1.2 on Python 3.11 writes it into its files.
VIT_KERAS_LAMBDA = (
    "4wEAAAAAAAAAAAAAAAMAAAATAAAA8xoAAACXAHwAZABkAIUCZAFmAhkAAAAAAAAAAABTACkCTukA\n"
    "AAAAqQCpAdoBdnMBAAAAIPo4L3Vzci9sb2NhbC9saWIvcHl0aG9uMy4xMS9zaXRlLXBhY2thZ2Vz\n"
    "L3ZpdF9rZXJhcy92aXQucHn6CDxsYW1iZGE++h1idWlsZF9tb2RlbC48bG9jYWxzPi48bGFtYmRh\n"
    "PnoAAABzEgAAAIAAqBGoMagxqDGoYag0rBeAAPMAAAAA\n"
)
