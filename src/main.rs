//! Arguments to subcommands, nothing else.

fn main() {}
