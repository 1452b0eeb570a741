//! The formats from outside: every cut and every flipped bit is refused, and the vectors hold.

#[cfg(test)]
mod acks;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod layouts;
#[cfg(test)]
mod ledger;
#[cfg(test)]
mod receipts_page;
#[cfg(test)]
mod request_bodies;
#[cfg(test)]
mod sealed_cases;
#[cfg(test)]
mod sealed_requests;
#[cfg(test)]
mod sealed_responses;
#[cfg(test)]
mod support;
#[cfg(test)]
mod vectors;
