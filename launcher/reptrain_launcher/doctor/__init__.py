"""`reptrain doctor`: checks of the hosts before a run starts. Does not import torch."""

from reptrain_launcher.doctor.gather import Request, gather
from reptrain_launcher.doctor.registry import CHECKS, Cluster, Finding
from reptrain_launcher.doctor.report import DoctorReport, diagnose

__all__ = ["CHECKS", "Cluster", "DoctorReport", "Finding", "Request", "diagnose", "gather"]
