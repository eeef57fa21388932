"""Chinchilla's parametric law. Repeated tokens count as fresh ones."""

from __future__ import annotations

from reptrain.analysis.laws.base import CHINCHILLA, Law, chinchilla_terms

LAW = Law(
    name="chinchilla",
    formula="E + A / N^alpha + B / D^beta",
    source="Hoffmann et al., Training compute-optimal large language models, 2022, approach 3",
    variables=("N", "D"),
    parameters=CHINCHILLA,
    terms=chinchilla_terms,
    scales=(("E",), ("A",), ("B",)),
    published={
        "hoffmann2022": {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
        "besiroglu2024": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    },
)
