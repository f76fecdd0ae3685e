"""timm 1.0.26 and newer: EXPORT TILES.npy FEATURES.npy. Runs in an environment of its own, without fullslide."""

import sys

import numpy as np
import timm
import torch
from PIL import Image

export, tiles_path, features_path = sys.argv[1:]
encoder = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder), is_training=False)
tiles = torch.stack([transform(Image.fromarray(tile)) for tile in np.load(tiles_path)])
with torch.inference_mode():
    np.save(features_path, encoder(tiles).numpy())
