"""Runs inside torchmil's environment: `read_with_torchmil.py FOLDER ENCODER LABELS.csv PATCH_SIZE`; prints what it reads."""

import json
import sys

import torch
from torchmil.datasets import TridentWSIDataset
from torchmil.models import ABMIL

folder, encoder, labels, patch_size = sys.argv[1:]
dataset = TridentWSIDataset(
    base_path=f"{folder}/", labels_path=labels, feature_extractor=encoder, bag_keys=["X", "Y", "adj", "coords"],
    patch_size=int(patch_size), norm_adj=False, wsi_name_col="slide", wsi_label_col="label",
)  # fmt: skip
bags = []
for name, number in zip(dataset.bag_names, range(len(dataset)), strict=True):
    bag = dataset[number]
    edges = bag["adj"].coalesce().indices().T.tolist()
    torch.manual_seed(0)
    score = ABMIL(in_shape=(bag["X"].shape[1],))(bag["X"].float()[None]).item()
    bags.append({"name": name, "X": bag["X"].float().tolist(), "dtype": str(bag["X"].dtype), "Y": bag["Y"].tolist(),
                 "coords": bag["coords"].tolist(), "edges": edges, "score": score})  # fmt: skip
print(json.dumps(bags))
