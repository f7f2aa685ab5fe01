"""Data sets by name, split, subset, augmented and batched so that a resumed run sees the same examples.

    data = load_images("cifar100", "../data", validation=0.1)
    for x, y in data.loader(batch_size=128, seed=0).epoch(0): ...
    for x, y in in_order(data.test, prepare=data.prepare): ...

`load_images`, `load_text` and `load_c4` give an object with `train`, `validation`, `test`, `example` and `loader`.
"""

from recipes.data._augment import Augment, PadCropFlip, shift_by_one
from recipes.data._c4 import BlockStream, StreamData, StreamLoader, load_c4
from recipes.data._corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages, corrupted, corruption_names
from recipes.data._digits import digits
from recipes.data._errors import DataError, MissingDataError
from recipes.data._examples import Data, Examples, batches
from recipes.data._image_data import ImageData, Source, assemble, channel_statistics
from recipes.data._loader import Loader, in_order, steps_per_epoch
from recipes.data._parts import FileImages, Images, MemoryImages, Part
from recipes.data._registry import load_images, load_text, names
from recipes.data._shifted import cifar_c, imagenet_c, imagenet_sketch
from recipes.data._splits import stratified_rows
from recipes.data._text import Blocks, TextData
from recipes.data._tokenizers import Bpe, Bytes, Pretrained, Subwords, Tokenizer, tokenizer_named

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Augment",
    "BlockStream",
    "Blocks",
    "Bpe",
    "Bytes",
    "CorruptedImages",
    "Data",
    "DataError",
    "Examples",
    "FileImages",
    "ImageData",
    "Images",
    "Loader",
    "MemoryImages",
    "MissingDataError",
    "PadCropFlip",
    "Part",
    "Pretrained",
    "Source",
    "StreamData",
    "StreamLoader",
    "Subwords",
    "TextData",
    "Tokenizer",
    "assemble",
    "batches",
    "channel_statistics",
    "cifar_c",
    "corrupted",
    "corruption_names",
    "digits",
    "imagenet_c",
    "imagenet_sketch",
    "in_order",
    "load_c4",
    "load_images",
    "load_text",
    "names",
    "shift_by_one",
    "steps_per_epoch",
    "stratified_rows",
    "tokenizer_named",
]
