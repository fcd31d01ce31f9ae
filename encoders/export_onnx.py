#!/usr/bin/env python3
"""Writes the vision tower of a checkpoint as an ONNX file that secateur runs as an encoder.

    pip install numpy onnx
    python export_onnx.py MODEL_DIR tower.onnx [--signals 22] [--keys]

Towers: clip_vision_model, siglip_vision_model, idefics3_vision, smolvlm_vision, internvl_vision. The graph is built
from config.json and the safetensors files alone; neither torch nor transformers is needed.

Input   pixel_values            [crops, 3, side, side] f32, as the model's processor gives it
Outputs hidden                  [crops, rows, width]   the features that the projector reads, class row included
        cls_attention.LAYER     [crops, patches]       attention of the class token, mean over heads, its own column dropped
        column_mean.LAYER       [crops, patches]       attention received, mean over heads and all queries
        keys.LAYER              [crops, rows, head]    with --keys: keys with bias, mean over heads
The last three exist for the layers of --signals (default: the last layer that runs), because pruners read them and no
one can get them out of a graph afterwards. What the tower is stands in the file's metadata under `secateur.tower`.
"""
import argparse
import json
import os
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# A few values of these tensors stand in the file, so that it is used with the model it was written from and no other.
SAMPLED = ("patch_embedding.weight", "projection.weight", "q_proj.weight", "fc2.weight")
OPSET = 20  # the first with Gelu

DEFAULTS = {  # of the classes of transformers 5.24, where a key is absent
    "clip_vision_model": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                              image_size=224, patch_size=32, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    "siglip_vision_model": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                                image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
    "idefics3_vision": dict(hidden_size=1152, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16,
                            image_size=224, patch_size=32, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
    "internvl_vision": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                            image_size=448, patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6,
                            norm_type="layer_norm", attention_bias=False, use_qk_norm=False, use_mean_pooling=True),
}
DEFAULTS["smolvlm_vision"] = DEFAULTS["idefics3_vision"]

# Families whose features pass the tower's final norm.
FINAL_NORM = {"paligemma", "smolvlm", "idefics3", "internvl"}


def side(value):
    """One number, or a pair of equal ones."""
    if isinstance(value, (list, tuple)):
        if len(set(value)) != 1:
            sys.exit(f"expected a square, found {value}")
        return int(value[0])
    return int(value)


def tensors(path):
    """Name and f32 array of each tensor of a safetensors file whose name speaks of a vision tower."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, entry in header.items():
            if name == "__metadata__" or "vision" not in name or entry["dtype"] not in ("F32", "F16", "BF16"):
                continue
            first, last = entry["data_offsets"]
            file.seek(8 + size + first)
            data = file.read(last - first)
            if entry["dtype"] == "BF16":  # the upper half of an f32
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, "<f4" if entry["dtype"] == "F32" else "<f2").astype(np.float32)
            yield name, values.reshape(entry["shape"])


def tower_tensors(folder):
    """The tower's tensors under their leaf names, f32."""
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if not os.path.exists(os.path.join(folder, files[0])):
        files = sorted(set(json.load(open(index))["weight_map"].values()))
    out = {}
    for name in files:
        for key, value in tensors(os.path.join(folder, name)):
            key = key.removeprefix("model.")
            for prefix in ("vision_tower.vision_model.", "vision_tower.", "vision_model."):
                if key.startswith(prefix):
                    out[key.removeprefix(prefix)] = value
                    break
    if not out:
        sys.exit(f"{folder}: no tensors of a vision tower")
    return out


class Graph:
    """Nodes and initialisers, with names made up as they are added."""

    def __init__(self, tensors):
        self.tensors, self.nodes, self.initialisers, self.count = tensors, [], {}, 0
        self.sample = {}

    def add(self, op, inputs, name=None, **attributes):
        self.count += 1
        name = name or f"{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def value(self, name, array):
        self.initialisers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def weight(self, name, transpose=False):
        if name not in self.tensors:
            sys.exit(f"no tensor `{name}` in the checkpoint")
        array = self.tensors[name]
        if name.endswith(SAMPLED):
            flat = array.reshape(-1)
            self.sample[name] = [float(flat[(2 * i + 1) * len(flat) // 8]) for i in range(4)]
        return self.value(name, array.T if transpose else array)

    def ints(self, *values):
        return self.value("ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def scalar(self, value):
        return self.value(f"scalar_{value!r}", np.array(value, dtype=np.float32))

    def linear(self, x, name, bias=True):
        y = self.add("MatMul", [x, self.weight(f"{name}.weight", transpose=True)])
        return self.add("Add", [y, self.weight(f"{name}.bias")]) if bias else y

    def norm(self, x, name, eps, kind="layer_norm"):
        if kind == "layer_norm":
            gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
            return self.add("LayerNormalization", [x, gain, bias], axis=-1, epsilon=eps)
        square = self.add("ReduceMean", [self.add("Mul", [x, x]), self.ints(-1)], keepdims=1)
        root = self.add("Sqrt", [self.add("Add", [square, self.scalar(eps)])])
        return self.add("Mul", [self.add("Div", [x, root]), self.weight(f"{name}.weight")])

    def activation(self, x, name):
        if name == "quick_gelu":
            gate = self.add("Sigmoid", [self.add("Mul", [x, self.scalar(1.702)])])
            return self.add("Mul", [x, gate])
        if name in ("gelu", "gelu_pytorch_tanh"):
            return self.add("Gelu", [x], approximate="tanh" if name != "gelu" else "none")
        sys.exit(f"activation `{name}` is not exported")


def build(folder, signals, keys):
    config = json.load(open(os.path.join(folder, "config.json")))
    vision = config.get("vision_config") or {}
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in DEFAULTS:
        sys.exit(f"vision tower `{kind}` is not exported; exported are {', '.join(DEFAULTS)}")
    c = {**DEFAULTS[kind], **{k: v for k, v in vision.items() if v is not None}}
    width, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    image, patch, eps = side(c["image_size"]), side(c["patch_size"]), float(c["layer_norm_eps"])
    head, lattice = width // heads, image // patch
    patches = lattice * lattice
    intern, clip = kind == "internvl_vision", kind == "clip_vision_model"
    cls = intern or clip
    rows = patches + int(cls)
    feature = config.get("vision_feature_layer", -2 if config.get("model_type") in ("llava", "llava_next") else -1)
    if not isinstance(feature, int):
        sys.exit("a list of feature layers is not exported")
    run = layers + 1 + feature if feature < 0 else feature
    signals = [run - 1] if signals is None else sorted(set(signals))
    if any(not 0 <= layer < run for layer in signals):
        sys.exit(f"--signals: layers 0 to {run - 1} run")

    g = Graph(tower_tensors(folder))
    conv = "embeddings.patch_embeddings.projection" if intern else "embeddings.patch_embedding"
    inputs = ["pixel_values", g.weight(f"{conv}.weight")] + ([] if clip else [g.weight(f"{conv}.bias")])
    x = g.add("Conv", inputs, strides=[patch, patch], kernel_shape=[patch, patch])
    x = g.add("Transpose", [g.add("Reshape", [x, g.ints(0, width, patches)])], perm=[0, 2, 1])
    if cls:
        token = g.tensors["embeddings.cls_token" if intern else "embeddings.class_embedding"].reshape(1, 1, width)
        count = g.add("Slice", [g.add("Shape", ["pixel_values"]), g.ints(0), g.ints(1)])
        shape = g.add("Concat", [count, g.ints(1, width)], axis=0)
        x = g.add("Concat", [g.add("Expand", [g.value("class_token", token), shape]), x], axis=1)
    table = "embeddings.position_embeddings" if intern else "embeddings.position_embedding.weight"
    x = g.add("Add", [x, g.value("positions", g.tensors[table].reshape(1, rows, width))])
    if clip:
        x = g.norm(x, "pre_layrnorm", eps)

    outputs = []

    def report(name, value, shape):
        g.add("Identity", [value], name)
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["crops", *shape]))

    norm_kind = c.get("norm_type", "layer_norm")
    for layer in range(run):
        if intern:
            at, first, second = f"encoder.layer.{layer}", "layernorm_before", "layernorm_after"
            attn, out, bias = f"{at}.attention", "projection_layer", bool(c["attention_bias"])
        else:
            at, first, second = f"encoder.layers.{layer}", "layer_norm1", "layer_norm2"
            attn, out, bias = f"{at}.self_attn", "out_proj", True
        h = g.norm(x, f"{at}.{first}", eps, norm_kind)
        q, k, v = (g.linear(h, f"{attn}.{p}_proj", bias) for p in "qkv")
        if keys and layer in signals:
            by_head = g.add("Reshape", [k, g.ints(0, rows, heads, head)])
            report(f"keys.{layer}", g.add("ReduceMean", [by_head, g.ints(2)], keepdims=0), [rows, head])
        if c.get("use_qk_norm"):
            q, k = g.norm(q, f"{attn}.q_norm", eps, "rms_norm"), g.norm(k, f"{attn}.k_norm", eps, "rms_norm")
        split = lambda t, perm: g.add("Transpose", [g.add("Reshape", [t, g.ints(0, rows, heads, head)])], perm=perm)
        scores = g.add("MatMul", [split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1])])
        scores = g.add("Softmax", [g.add("Mul", [scores, g.scalar(head**-0.5)])], axis=-1)
        if layer in signals:
            mean = g.add("ReduceMean", [scores, g.ints(1)], keepdims=0)  # [crops, rows, rows]
            seen = g.add("Slice", [mean, g.ints(int(cls)), g.ints(rows), g.ints(2)])
            report(f"column_mean.{layer}", g.add("ReduceMean", [seen, g.ints(1)], keepdims=0), [patches])
            if cls:
                row = g.add("Slice", [seen, g.ints(0), g.ints(1), g.ints(1)])
                report(f"cls_attention.{layer}", g.add("Squeeze", [row, g.ints(1)]), [patches])
        mixed = g.add("Transpose", [g.add("MatMul", [scores, split(v, [0, 2, 1, 3])])], perm=[0, 2, 1, 3])
        delta = g.linear(g.add("Reshape", [mixed, g.ints(0, rows, width)]), f"{attn}.{out}")
        if intern:
            delta = g.add("Mul", [delta, g.weight(f"{at}.lambda_1")])
        x = g.add("Add", [x, delta])
        h = g.norm(x, f"{at}.{second}", eps, norm_kind)
        h = g.activation(g.linear(h, f"{at}.mlp.fc1"), c["hidden_act"])
        delta = g.linear(h, f"{at}.mlp.fc2")
        if intern:
            delta = g.add("Mul", [delta, g.weight(f"{at}.lambda_2")])
        x = g.add("Add", [x, delta])
    final = None
    if config.get("model_type") in FINAL_NORM and run == layers:
        if intern:
            final = None if c["use_mean_pooling"] else "layernorm"
        elif not cls:
            final = "post_layernorm"
    if final:
        x = g.norm(x, final, eps, norm_kind if intern else "layer_norm")
    report("hidden", x, [rows, width])

    tower = dict(version=1, tower=kind, layers=run, file_layers=layers, heads=heads, width=width, cls=cls,
                 image=image, patch=patch, signals=signals, keys=bool(keys), eps=eps, final_norm=final is not None, weights=g.sample)
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["crops", 3, image, image])
    graph = helper.make_graph(g.nodes, kind, [pixels], outputs, list(g.initialisers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9,
                              producer_name="secateur export_onnx.py")
    helper.set_model_props(model, {"secateur.tower": json.dumps(tower)})
    return model, tower


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument("out", help="file to write")
    parser.add_argument("--signals", type=int, nargs="*", metavar="LAYER", help="layers whose attention is reported")
    parser.add_argument("--keys", action="store_true", help="report keys of those layers, too")
    arguments = parser.parse_args()
    model, tower = build(arguments.model, arguments.signals, arguments.keys)
    onnx.checker.check_model(model)
    temporary = arguments.out + ".part"
    # More than 2 GiB do not fit one protobuf: weights then stand beside it.
    large = sum(len(i.raw_data) for i in model.graph.initializer) > 1_900_000_000
    beside = os.path.basename(arguments.out) + ".data"
    onnx.save_model(model, temporary, save_as_external_data=large, location=beside if large else None)
    os.replace(temporary, arguments.out)
    print(json.dumps({key: value for key, value in tower.items() if key != "weights"}))


if __name__ == "__main__":
    main()
