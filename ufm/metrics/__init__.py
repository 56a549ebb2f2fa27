"""SHELF of neural-collapse metrics: NC1-NC4 of features and a classifier, in one batch or streamed.

With class means h_k (over the true counts n_k), the mean of all samples h_G, and

    Sigma_W = (1/N) sum_j (h_j - h_{y_j})(h_j - h_{y_j})^T      Sigma_B = (1/K) sum_k (h_k - h_G)(h_k - h_G)^T

the paper (Zhou et al. 2022, Section 4) measures

    NC1 = tr(Sigma_W pinv(Sigma_B)) / K                             within-class collapse
    NC2 = | W W^T / |W W^T|_F - (I - 11^T/K) / sqrt(K - 1) |_F      W is a simplex ETF
    NC3 = | W Hbar / |W Hbar|_F - (I - 11^T/K) / sqrt(K - 1) |_F    W and Hbar = [h_k - h_G] are dual
    NC4 = share of samples whose nearest class mean is the class that W h + b chooses

Collapse is NC1 = NC2 = NC3 = 0 and NC4 = 1. What other sources mean by the same names is a row of
`CONVENTIONS`; with unequal counts they differ in the centre of the class means, which for "papyan" and
"rhubarbwu" is the plain mean of the class means instead of h_G. The centred means have rank <= K - 1
whatever the counts, so NC1 is computed from the singular values and vectors of the K means alone: no d x d
matrix, and no cut-off that a default chooses.

Degenerate input has a defined answer:

- one sample in every class: NC1 = 0 exactly;
- all class means equal up to rounding (in each coordinate relative to its own largest |feature|, with the
  epsilon of the features' dtype, float32's for half precisions): NC1 = inf whatever the scatter,
  the centred means count as zero, and NC4 = 0, since no mean is the nearest;
- a zero matrix stays zero when normalised: its NC2 or NC3 is 1 (W = 0, or no distinct means);
- a class without samples: every metric is that of the classes present, as if the others were struck out of
  labels, W and b, and K counted the present ones (`present` tells how many); with a single class present
  NC1 = inf, NC2 = NC3 = 1 and NC4 = 0;
- ties of means or logits go to the lowest class.
"""

from ufm.metrics._batch import neural_collapse, of_params
from ufm.metrics._core import NeuralCollapse
from ufm.metrics._stream import Agreement, Stream
from ufm.metrics.conventions import CONVENTIONS, Convention, Facts

__all__ = [
    "CONVENTIONS",
    "Agreement",
    "Convention",
    "Facts",
    "NeuralCollapse",
    "Stream",
    "neural_collapse",
    "of_params",
]
