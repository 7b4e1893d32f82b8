"""Meta-training of a TMLC-Net that transfers, on many data sets with known truth."""
