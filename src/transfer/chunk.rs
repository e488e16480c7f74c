//! Chunks: pages of memory and pieces of a disk, packed for the way.
