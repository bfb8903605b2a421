"""States as cells, steps as edges: graphs of recorded orbits, their cycles and attractors, each beside its nulls."""

from dynloop.graph.attractors import Attractors, attractors
from dynloop.graph.cells import Cells, Partition, cells
from dynloop.graph.graph_statistics import graph_statistics
from dynloop.graph.reasoning_graph import reasoning_graph
from dynloop.graph.small_world import small_world
from dynloop.graph.transition_graph import TransitionGraph, transition_graph

__all__ = ["Attractors", "Cells", "Partition", "TransitionGraph", "attractors", "cells", "graph_statistics",
           "reasoning_graph", "small_world", "transition_graph"]
