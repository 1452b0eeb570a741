//! Text at the client's end: prompts become tokens before they are sealed, tokens become text after they were opened.

use chrysalis_models::text::{
    ChatTemplate, ClientText, Detokenizer, Message, StopMatcher, TextConfig, TextError, Tokenizer,
};
use chrysalis_protocol::package::ClientBundle;
use chrysalis_protocol::rand_core::{Rng, UnwrapErr};
use chrysalis_protocol::request::{Options, Prompt, RequestBody};
use getrandom::SysRng;

use crate::answer::{Answer, Delta};
use crate::error::ClientError;

/// The tokenizer and the chat template of a model, from its client bundle.
#[expect(missing_debug_implementations, reason = "templates and tokenizers have nothing to show")]
pub struct Chat {
    tokenizer: Tokenizer,
    text: ClientText,
}

/// What to ask.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a prompt is never printed")]
pub struct ChatRequest {
    /// The messages so far; with `raw`, the content of the last one is the prompt as it is.
    pub messages: Vec<Message>,
    /// No chat template.
    pub raw: bool,
    /// Longest answer in tokens.
    pub max_tokens: u32,
    /// The sampler's seed; random where none is given.
    pub seed: Option<u64>,
    /// What differs from the package's defaults.
    pub options: Options,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
}

impl Chat {
    /// Reads a client bundle whose digest was checked.
    ///
    /// # Errors
    /// [`ClientError::Bundle`], [`ClientError::Text`].
    pub fn new(client_bundle: &[u8]) -> Result<Self, ClientError> {
        let bundle = ClientBundle::parse(client_bundle)?;
        let config = match bundle.text_config {
            Some(json) => TextConfig::from_json(json)?,
            None => TextConfig::default(),
        };
        let text = ClientText {
            tokenizer_json: bundle.tokenizer.to_vec(),
            chat_template: bundle.chat_template.map(str::to_owned),
            config,
        };
        Ok(Self { tokenizer: text.tokenizer()?, text })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] for a base model.
    pub fn template(&self) -> Result<ChatTemplate, TextError> {
        self.text.chat_template(&self.tokenizer)
    }

    /// The request to seal.
    ///
    /// # Errors
    /// [`ClientError::Text`] when there is no template or it refuses the messages, [`ClientError::EmptyPrompt`].
    pub fn request(&self, request: &ChatRequest) -> Result<RequestBody, ClientError> {
        let ids = if request.raw {
            let text = request.messages.last().map_or("", |message| message.content.as_str());
            if text.is_empty() {
                return Err(ClientError::EmptyPrompt);
            }
            self.tokenizer.encode(text, true)?
        } else {
            self.tokenizer.encode_rendered(&self.template()?.render(&request.messages, true)?)?
        };
        if ids.is_empty() {
            return Err(ClientError::EmptyPrompt);
        }
        let mut rng = UnwrapErr(SysRng);
        let mut request_id = [0; 16];
        rng.fill_bytes(&mut request_id);
        Ok(RequestBody {
            stream: true,
            want_logprobs: request.options.logprobs.is_some(),
            max_output: request.max_tokens,
            request_id,
            seed: request.seed.unwrap_or_else(|| rng.next_u64()),
            options: request.options.clone(),
            prompt: Prompt::tokens(ids),
        })
    }

    /// Turns the tokens of one answer into text, up to a stop string.
    pub fn reader(&self, stop: &[String]) -> TextReader<'_> {
        TextReader {
            detokenizer: self.tokenizer.detokenizer(true),
            stop: StopMatcher::new(stop.iter().cloned()),
        }
    }

    /// Streams an answer as text, cancels it at a stop string, and tells whether one came.
    ///
    /// # Errors
    /// As [`Answer::next_delta`], and whatever `piece` returns.
    pub fn stream<E: From<ClientError>>(
        &self,
        answer: &mut Answer<'_>,
        stop: &[String],
        mut piece: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut reader = self.reader(stop);
        while let Some(delta) = answer.next_delta().map_err(E::from)? {
            let Delta::Tokens(ids) = delta else { continue };
            for &id in ids.iter() {
                if reader.stopped() {
                    break;
                }
                let text = reader.push(id);
                if !text.is_empty() {
                    piece(&text)?;
                }
            }
            if reader.stopped() {
                answer.cancel().map_err(E::from)?;
            }
        }
        let rest = reader.finish();
        if !rest.is_empty() {
            piece(&rest)?;
        }
        Ok(reader.stopped())
    }
}

/// Tokens in, text out.
#[expect(missing_debug_implementations, reason = "it holds a part of a secret answer")]
pub struct TextReader<'a> {
    detokenizer: Detokenizer<'a>,
    stop: StopMatcher,
}

impl TextReader<'_> {
    /// The text that is certain with this token; what may begin a stop string is held back.
    pub fn push(&mut self, id: u32) -> String {
        self.stop.push(&self.detokenizer.push(id))
    }

    /// Whether a stop string came.
    pub fn stopped(&self) -> bool {
        self.stop.stopped()
    }

    /// The rest, when no more tokens come.
    pub fn finish(&mut self) -> String {
        if self.stop.stopped() {
            return String::new();
        }
        let mut text = self.stop.push(&self.detokenizer.finish());
        text.push_str(&self.stop.finish());
        text
    }
}
