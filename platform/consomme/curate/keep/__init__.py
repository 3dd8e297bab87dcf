"""Keep policies: which samples stay, decided exactly and globally from columns of scores."""
