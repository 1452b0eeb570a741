//! The key broker from outside: as its operator uses it, as enclaves and hosts meet it, and killed at any moment.

mod broker;
mod enclave;
mod kill;
mod operator;
mod refusals;
mod whole_way;
