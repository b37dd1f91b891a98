"""Data: small real sets that need no download, larger ones with a checked cache, splits, scaling, augmentation.

split = data.digits()                                   # arrays, ready for training
train, valid = data.stratified_split(y, (0.9, 0.1))     # index arrays
x, x_test, statistics = data.normalize(x, x_test)       # mean and deviation of x alone
change = data.augment(data.Shift(1), data.Mixup(0.2, classes=10))
batch = change(key, (x, y))                             # pure: under jit, vmap and scan
"""

from jopt.data.augment import Augment, augment
from jopt.data.download import DownloadError, OfflineWarning, cifar10, fashion_mnist, mnist
from jopt.data.images import Crop, Cutout, Flip, Noise, Rotate, Shift
from jopt.data.mixing import Cutmix, LabelSmoothing, Mixup
from jopt.data.normalize import Statistics, normalize
from jopt.data.offline import (
    Split,
    Text,
    breast_cancer,
    diabetes,
    digits,
    english_text,
    iris,
    photo_patches,
    windows,
    wine,
)
from jopt.data.splits import balanced_order, class_weights, random_split, stratified_split

__all__ = [
    "Augment",
    "Crop",
    "Cutmix",
    "Cutout",
    "DownloadError",
    "Flip",
    "LabelSmoothing",
    "Mixup",
    "Noise",
    "OfflineWarning",
    "Rotate",
    "Shift",
    "Split",
    "Statistics",
    "Text",
    "augment",
    "balanced_order",
    "breast_cancer",
    "cifar10",
    "class_weights",
    "diabetes",
    "digits",
    "english_text",
    "fashion_mnist",
    "iris",
    "mnist",
    "normalize",
    "photo_patches",
    "random_split",
    "stratified_split",
    "windows",
    "wine",
]
