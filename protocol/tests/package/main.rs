//! The sealed model package, from outside: what was written opens, and nothing else does.

#[cfg(test)]
mod meta;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tamper;
#[cfg(test)]
mod vectors;
