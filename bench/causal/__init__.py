"""Interventions against passes of their own, values first."""
