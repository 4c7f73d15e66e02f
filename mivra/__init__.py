"""Mivra operator dashboard: figures, bot control and the state of the system."""
