//! Folding changes into the set of objects.
