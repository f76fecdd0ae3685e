"""timm 0.9.12 to 1.0.15, which know no local-dir: EXPORT TILES.npy FEATURES.npy."""

import json
import sys

import numpy as np
import timm
import torch
from PIL import Image

export, tiles_path, features_path = sys.argv[1:]
with open(f"{export}/config.json") as stream:
    config = json.load(stream)
settings = dict(config["pretrained_cfg"], file=f"{export}/model.safetensors")
encoder = timm.create_model(
    config["architecture"], pretrained=True, pretrained_cfg=settings, num_classes=0, **config.get("model_args", {})
).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder), is_training=False)
tiles = torch.stack([transform(Image.fromarray(tile)) for tile in np.load(tiles_path)])
with torch.inference_mode():
    np.save(features_path, encoder(tiles).numpy())
