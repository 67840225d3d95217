"""Write the Transformer of a CLSA model's sizes: what its speed is compared with.

    python3 bench/same_size_transformer.py models/warp-21m OUT

Every layer is a full one with keys and values of its own. The weights are the model's; a cross
layer takes the keys and values of the layer n_self below it. It says nothing, and costs per token
what a Transformer of this width, depth and weight format costs.
"""

import argparse
import json
import os
import shutil
import struct


def read_tensors(path):
    with open(path, "rb") as file:
        (n,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(n)), file.read()
    metadata = header.pop("__metadata__", None)
    return metadata, {
        name: (row["dtype"], row["shape"], data[slice(*row["data_offsets"])]) for name, row in header.items()
    }


def write_tensors(path, metadata, tensors):
    header, at = {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", metavar="MODEL", help="folder of the CLSA model, as train/export.py writes it")
    parser.add_argument("out", metavar="OUT", help="folder to write, which is made")
    args = parser.parse_args()
    source, out = args.source, args.out
    try:
        with open(os.path.join(source, "config.json")) as file:
            config = json.load(file)
    except OSError as error:
        parser.error(f"{source}: is not a model's folder: {error.strerror}: config.json")
    if config.get("arch") != "clsa":
        parser.error(f"{source}: arch {config.get('arch')!r} of config.json: must be 'clsa'")
    os.makedirs(out, exist_ok=True)
    n_self, n_layers = config["n_self"], config["n_layers"]
    metadata, tensors = read_tensors(os.path.join(source, "model.safetensors"))
    tensors = {name: row for name, row in tensors.items() if not name.startswith(("index.", "shared."))}
    for layer in range(n_self, n_layers):
        for part in ("k_proj", "v_proj", "k_norm"):
            name = f"layers.%d.self_attn.{part}.weight"
            tensors[name % layer] = tensors[name % (layer % n_self)]
    write_tensors(os.path.join(out, "model.safetensors"), metadata, tensors)
    config = {key: value for key, value in config.items() if not key.startswith("index_")}
    config |= {"arch": "transformer", "n_self": n_layers, "n_cross": 0, "doc_reset": False}
    config |= {"layer_kinds": ["full"] * n_layers, "model_type": "heddle_transformer"}
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    shutil.copy(os.path.join(source, "tokenizer.json"), out)


if __name__ == "__main__":
    main()
