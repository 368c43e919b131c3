"""The recipes; a wheel ships them as ``qmix_trl_recipes``, whose ``command`` runs each by name."""
