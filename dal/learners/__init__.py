"""Learners: scikit-learn classifiers as dal uses them, and the fitted models that travel to the workers."""
