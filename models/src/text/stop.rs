//! Stop strings, matched over a stream of text: what may be the start of one is held back until it is decided.

/// Finds the first stop string in text that arrives in pieces.
///
/// The text that comes out, joined, is the text that went in up to the first stop string, whatever the pieces were.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher of these strings; empty ones never match.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes a piece of text and returns what may be shown now. After a match nothing comes out any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some((at, stop)) = self.first_match() {
            self.stopped = Some(stop);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.undecided();
        let rest = self.held.split_off(self.held.len().saturating_sub(keep));
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was found; it and everything after it is never shown.
    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that was found.
    pub fn matched(&self) -> Option<&str> {
        self.stops.get(self.stopped?).map(String::as_str)
    }

    /// The stream ended: returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string begins that is complete first (of two that end together, the longer one), and which one
    /// it is. A match that is complete is never given up for one that is still open: so the pieces do not matter.
    fn first_match(&self) -> Option<(usize, usize)> {
        let places = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let at = self.held.find(stop.as_str())?;
            Some((at.saturating_add(stop.len()), at, index))
        });
        places.min().map(|(_, at, index)| (at, index))
    }

    /// The length of the longest end of the held text that is the start of a stop string.
    fn undecided(&self) -> usize {
        let of_one = |stop: &String| {
            let longest = self.held.len().min(stop.len().saturating_sub(1));
            (1..=longest)
                .rev()
                .find(|&len| stop.get(..len).is_some_and(|start| self.held.ends_with(start)))
                .unwrap_or(0)
        };
        self.stops.iter().map(of_one).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()));
        let mut out: Vec<String> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        out.push(matcher.finish());
        (out, matcher.matched().map(str::to_owned))
    }

    #[test]
    fn text_before_the_stop_string_comes_out_and_nothing_after_it() {
        let (out, matched) = run(&["END"], &["one END two", "three"]);
        assert_eq!(out, ["one ", "", ""]);
        assert_eq!(matched.as_deref(), Some("END"));
    }

    #[test]
    fn a_stop_string_is_found_across_pieces() {
        let (out, matched) = run(&["\nUser:"], &["hi\n", "Us", "er: x"]);
        assert_eq!(out, ["hi", "", "", ""]);
        assert_eq!(matched.as_deref(), Some("\nUser:"));
    }

    #[test]
    fn a_false_start_is_released_as_soon_as_it_is_decided() {
        let (out, matched) = run(&["\nUser:"], &["hi\n", "Us", "ually", "\n"]);
        assert_eq!(out, ["hi", "", "\nUsually", "", "\n"]);
        assert_eq!(matched, None);
    }

    #[test]
    fn a_false_start_may_hold_the_true_one() {
        let (out, matched) = run(&["aab"], &["a", "a", "a", "b", "c"]);
        assert_eq!(out.concat(), "a");
        assert_eq!(matched.as_deref(), Some("aab"));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        for pieces in [&["x abcd"][..], &["x ab", "cd"], &["x a", "b", "c", "d"]] {
            let (out, matched) = run(&["abcd", "c"], pieces);
            assert_eq!(out.concat(), "x ab");
            assert_eq!(matched.as_deref(), Some("c"));
        }
    }

    #[test]
    fn every_split_of_a_text_gives_the_same_output() {
        let text = "né ab abc ébc é日本語 stop";
        let stops = ["語 s", "bcd", "é日本x"];
        let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        for &first in &cuts {
            for &second in cuts.iter().filter(|&&second| second >= first) {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let (out, matched) = run(&stops, &pieces);
                assert_eq!(out.concat(), "né ab abc ébc é日本");
                assert_eq!(matched.as_deref(), Some("語 s"));
            }
        }
    }

    #[test]
    fn an_empty_stop_string_never_matches() {
        let (out, matched) = run(&["", ""], &["text"]);
        assert_eq!(out, ["text", ""]);
        assert_eq!(matched, None);
    }
}
