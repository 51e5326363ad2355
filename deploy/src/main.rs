//! Bridle.
fn main() {}
