"""Self-Tuning Networks: a network whose hyperparameters are tuned while it is trained, in one run.

`FittedResponse` and `self_tuning` are the same idea for a problem of `bilevel`, whose lower level is solved.
Sources: arXiv 1903.03088 (STN), arXiv 2010.13514 (Delta-STN).
"""

from . import augment as augment
from ._bind import bind as bind
from ._convert import convert as convert
from ._effective import effective as effective
from ._effective import materialise as materialise
from ._replay import replay as replay
from ._result import Run as Run
from ._tune import tune as tune
from .dropout import DropConnect as DropConnect
from .dropout import Dropout as Dropout
from .dropout import EmbeddingDropout as EmbeddingDropout
from .epochs import OUTCOMES as OUTCOMES
from .hyperparameter import AbstractHyperparameter as AbstractHyperparameter
from .method import Method as Method
from .method import delta_stn as delta_stn
from .method import stn as stn
from .mixing import mixup as mixup
from .mixing import smooth_labels as smooth_labels
from .penalty import squared_norm as squared_norm
from .ranges import AtLeast as AtLeast
from .ranges import Free as Free
from .ranges import Integer as Integer
from .ranges import LogReal as LogReal
from .ranges import Positive as Positive
from .ranges import Rate as Rate
from .ranges import Real as Real
from .schedule import Schedule as Schedule
from .space import Space as Space
from .space import Vector as Vector
