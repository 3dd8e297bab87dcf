"""`recaption`: let a model write new captions for the samples of a view."""
