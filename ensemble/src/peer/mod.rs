//! How members talk to each other. The connections are neither encrypted nor authenticated: they belong on a network of their own.

pub mod frame;
pub mod link;
pub mod message;
pub mod serve;
