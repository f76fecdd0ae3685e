"""LazySlide from a slide file to features: EXPORT TILES.npy FEATURES.npy SLIDE COORDINATES.npy.

FEATURES.npy are of TILES.npy through LazySlide's model class; COORDINATES.npy gets [x, y] in level-0 pixels and features of
the tiles that LazySlide itself cut from SLIDE, side by side.
"""

import sys

import lazyslide as zs
import numpy as np
import torch
from lazyslide_models.base import TimmModel
from wsidata import open_wsi

export, tiles_path, features_path, slide_path, coordinates_path = sys.argv[1:]
tiles = np.load(tiles_path)
model = TimmModel(f"local-dir:{export}")
transform = model.get_transform()
np.save(features_path, model.encode_image(torch.stack([transform(tile) for tile in tiles])).numpy())

slide = open_wsi(slide_path, store=None)
zs.pp.tile_tissues(slide, tile_px=tiles.shape[1], mpp=0.5, tissue_key=None, background_filter=False)
zs.tl.feature_extraction(slide, model=f"local-dir:{export}", device="cpu", num_workers=0, pbar=False, key_added="ours")
table = slide["ours"]
places = slide["tiles"].geometry.bounds[["minx", "miny"]].to_numpy()
np.save(coordinates_path, np.concatenate([places, np.asarray(table.X)], axis=1))
