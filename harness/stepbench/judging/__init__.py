"""The judge: what two measurements side by side allow to be said."""
