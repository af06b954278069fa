"""What families share whose routers score by sigmoids and choose within groups of experts."""

from roma_ds.families.capability import Limit

SELECTION = (
    "top-k of sigmoids plus a correction bias, within the groups whose two best add up to most; "
    "weighed by the sigmoids, renormalised where `norm_topk_prob`, times `routed_scaling_factor`"
)
NOT_IN_THE_PAPER = Limit(
    "route", "experimental", "the paper has no sigmoid routers; r is the sigmoids over their sum"
)
