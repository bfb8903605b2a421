"""Stages of inference: profiles over depth, likeness of states, mirroring of a feed-forward model, clusters."""

from dynloop.stages.cka import CkaSums, HsicSums, cka
from dynloop.stages.clusters import StageClusters, stage_clusters
from dynloop.stages.depth_extrapolation import depth_extrapolation
from dynloop.stages.matrix_entropy import anisotropy, matrix_entropy
from dynloop.stages.mirroring import mirroring, monotone_alignment
from dynloop.stages.neuron_classes import neuron_classes
from dynloop.stages.profile import profile_by, stage_profile
from dynloop.stages.similarity import layer_cka, layer_cosine

__all__ = [
           "CkaSums",
           "HsicSums",
           "StageClusters",
           "anisotropy",
           "cka",
           "depth_extrapolation",
           "layer_cka",
           "layer_cosine",
           "matrix_entropy",
           "mirroring",
           "monotone_alignment",
           "neuron_classes",
           "profile_by",
           "stage_clusters",
           "stage_profile",
]
