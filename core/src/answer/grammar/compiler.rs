//! Compiles grammars over the vocabulary of a model, and follows them token by token.

use crate::{
    answer::grammar::source::{Kind, Source},
    error::{Error, Result},
    text::Tokenizer,
};
use llguidance::{
    Matcher, ParserFactory,
    toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};
use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread,
};

/// The number of compiled grammars that a model keeps.
const KEPT: usize = 32;

/// The stack of the thread that compiles: grammars are compiled recursively.
const STACK: usize = 64 << 20;

/// The longest token in bytes that a grammar uses; the prefix tree has no room for longer ones.
const LONGEST_TOKEN: usize = 512;

/// The longest reason of a refusal, in characters.
const LONGEST_REASON: usize = 300;

/// Compiles the grammars of a model and keeps the latest. The first one prepares the vocabulary.
pub(crate) struct Compiler {
    tokenizer: Tokenizer,
    vocabulary: OnceLock<Result<Vocabulary, String>>,
    compiled: Mutex<VecDeque<(String, Grammar)>>,
}

/// A vocabulary that is prepared for masks.
struct Vocabulary {
    factory: ParserFactory,
    /// The id that stands for the end of a text in masks; no token has it.
    end: TokenId,
}

impl Compiler {
    pub fn new(tokenizer: Tokenizer) -> Self {
        Compiler { tokenizer, vocabulary: OnceLock::new(), compiled: Mutex::default() }
    }

    /// A grammar, at its start. Compiling takes milliseconds, and preparing a large vocabulary a
    /// part of a second; neither belongs on the engine thread.
    ///
    /// # Errors
    /// [`Error::Grammar`] for what llguidance cannot compile and for a grammar that admits no text.
    pub fn compile(&self, source: &Source) -> Result<Grammar> {
        let compiled = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = compiled();
        if let Some(at) = known.iter().position(|(key, _)| *key == source.key)
            && let Some(entry) = known.remove(at)
        {
            let grammar = entry.1.fresh();
            known.push_front(entry);
            return Ok(grammar);
        }
        drop(known);
        let grammar = thread::scope(|scope| {
            let compiling = thread::Builder::new().stack_size(STACK);
            let compiling = compiling.spawn_scoped(scope, || self.fresh(source));
            let failed = || Err(Error::Internal("the grammar was not compiled".into()));
            compiling.map_or_else(|_| failed(), |thread| thread.join().unwrap_or_else(|_| failed()))
        })?;
        let mut known = compiled();
        known.truncate(KEPT - 1);
        known.push_front((source.key.clone(), grammar.fresh()));
        Ok(grammar)
    }

    fn fresh(&self, source: &Source) -> Result<Grammar> {
        let Vocabulary { factory, end } = self.vocabulary()?;
        let refused = |reason: &str| source.refused(&short(reason));
        let mut matcher = Matcher::new(factory.create_parser(source.grammar.clone()));
        if let Some(reason) = matcher.get_error() {
            let place = source
                .place(|part| Matcher::new(factory.create_parser(part)).get_error().is_some());
            let place = place.map(|place| format!("`{place}`: ")).unwrap_or_default();
            return Err(refused(&format!("{place}{reason}")));
        }
        let mut grammar = Grammar { kind: source.kind, matcher: matcher.deep_clone(), end: *end };
        let admits = !grammar.is_complete() && grammar.mask().is_ok_and(|next| !next.is_nothing());
        if !admits && !matcher.is_accepting().unwrap_or(false) {
            return Err(refused("it admits no text"));
        }
        Ok(Grammar { matcher, ..grammar })
    }

    fn vocabulary(&self) -> Result<&Vocabulary> {
        let prepare = || match catch_unwind(AssertUnwindSafe(|| Vocabulary::new(&self.tokenizer))) {
            Ok(prepared) => prepared,
            Err(_) => Err("the vocabulary has no prefix tree".into()),
        };
        let prepared = self.vocabulary.get_or_init(prepare);
        prepared.as_ref().map_err(|reason| Error::Internal(reason.clone()))
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

/// The first line of a message of llguidance.
fn short(reason: &str) -> String {
    let line = reason.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().chars().take(LONGEST_REASON).collect()
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let mut words = tokenizer.token_bytes().map_err(|error| error.to_string())?;
        words.iter_mut().filter(|word| word.len() > LONGEST_TOKEN).for_each(Vec::clear);
        for token in tokenizer.all_special_tokens() {
            if token.text.len() < LONGEST_TOKEN {
                words[token.id as usize] = marked(&token.text);
            }
        }
        let end = words.len() as TokenId;
        words.push(marked("<the end of the text>"));
        let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
        let trie: TokEnv = Arc::new(Trie(trie));
        let mut factory = ParserFactory::new_simple(&trie).map_err(|error| error.to_string())?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Vocabulary { factory, end })
    }
}

/// A special token, which no text of a grammar matches.
fn marked(text: &str) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat()
}

struct Trie(TokTrie);

impl TokenizerEnv for Trie {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// The model decides how a text is cut into tokens.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// A place in a grammar.
pub(crate) struct Grammar {
    kind: Kind,
    matcher: Matcher,
    end: TokenId,
}

/// What a grammar admits next.
pub(crate) struct Admitted {
    /// The tokens: `id` is bit `id % 32`, counted from the lowest, of the integer `id / 32`.
    pub tokens: Vec<u32>,
    /// Whether the text may end here.
    pub end: bool,
}

impl Admitted {
    fn is_nothing(&self) -> bool {
        !self.end && self.tokens.iter().all(|bits| *bits == 0)
    }
}

impl Grammar {
    /// The same grammar at the same place, to be followed apart.
    pub fn fresh(&self) -> Self {
        Grammar { kind: self.kind, matcher: self.matcher.deep_clone(), end: self.end }
    }

    /// Whether the text is complete, and nothing may follow it.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// What may come next; nothing after the end.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the grammar is too complex at this place.
    pub fn mask(&mut self) -> Result<Admitted> {
        if self.is_complete() {
            return Ok(Admitted { tokens: Vec::new(), end: true });
        }
        match self.matcher.compute_mask() {
            Ok(mask) => {
                let mut tokens: Vec<u32> = mask.into();
                let bits = &mut tokens[self.end as usize / 32];
                let end = *bits >> (self.end % 32) & 1 == 1;
                *bits &= !(1 << (self.end % 32));
                Ok(Admitted { tokens, end })
            }
            // The vocabulary has no token with which the text could go on.
            Err(error) if error.to_string().starts_with("NoExtension") => {
                Ok(Admitted { tokens: Vec::new(), end: false })
            }
            Err(error) => Err(self.kind.refused(short(&error.to_string()))),
        }
    }

    /// Whether a token may come next.
    ///
    /// # Errors
    /// [`Error::Grammar`].
    pub fn admits(&mut self, id: u32) -> Result<bool> {
        let valid = self.matcher.validate_tokens(&[id]).map(|count| count == 1);
        valid.map_err(|error| self.kind.refused(short(&error.to_string())))
    }

    /// Advances by a token that the mask held.
    ///
    /// # Errors
    /// [`Error::Grammar`].
    pub fn accept(&mut self, id: u32) -> Result<()> {
        let consumed = self.matcher.consume_token(id);
        consumed.map_err(|error| self.kind.refused(short(&error.to_string())))
    }

    /// Advances by a text. Returns whether the grammar admits it.
    pub fn accept_text(&mut self, text: &str) -> bool {
        let Ok(env) = self.matcher.tok_env() else { return false };
        let tokens = env.tokenize_bytes(text.as_bytes());
        self.matcher.try_consume_tokens(&tokens).is_ok_and(|count| count == tokens.len())
    }
}
