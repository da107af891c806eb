//! A transcription of audio that is still coming: each second, the audio that is not settled yet is
//! transcribed as a whole; its text is partial until a later segment has followed.

use crate::{
    engine::{
        engine_model::{EngineModel, find},
        thread::{Engine, Task, Turn},
        transcription_task::{Transcription, TranscriptionEvent},
    },
    error::{Error, Result},
    generate::transcription::{
        Progress, Segment, TranscribeOptions, Transcript, TranscriptionRun, Vocabulary,
    },
    media::audio::{Audio, Recording, Resampler},
};
use std::{
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
};
use tokio::sync::mpsc::UnboundedSender;

/// Seconds of new audio before the text is written again.
const EVERY: f64 = 1.0;
/// A segment is final when another one follows it and it ended this many seconds ago.
const SETTLED: f64 = 2.0;
/// Text of this many seconds is final in any case.
const LONGEST: f64 = 28.0;

/// Takes the audio of a live transcription. Dropping it ends the audio.
pub struct LiveAudio {
    samples: Sender<Vec<f32>>,
    resampler: Resampler,
    sample_rate: u32,
    engine: &'static Engine,
}

/// What a live transcription needs.
pub(crate) struct LiveRequest {
    pub model: u64,
    /// Samples a second of the model.
    pub model_rate: u32,
    /// Samples a second of the audio.
    pub sample_rate: u32,
    pub vocabulary: Option<Arc<Vocabulary>>,
    pub options: TranscribeOptions,
}

impl LiveAudio {
    /// Begins a transcription.
    pub(crate) fn start(
        engine: &'static Engine,
        request: LiveRequest,
    ) -> Result<(Self, Transcription)> {
        let resampler = Resampler::new(request.sample_rate, request.model_rate)?;
        let (samples, inbox) = channel();
        let sample_rate = request.sample_rate;
        let (transcription, outlet) = Transcription::new(engine);
        engine.start(move || {
            Box::new(LiveTask {
                request,
                inbox,
                outlet,
                buffer: Vec::new(),
                before: 0,
                fresh: 0,
                has_ended: false,
                running: None,
                transcript: Transcript::default(),
            })
        });
        Ok((LiveAudio { samples, resampler, sample_rate, engine }, transcription))
    }

    /// Adds the next samples of one channel, at the rate that the transcription was started with.
    ///
    /// # Errors
    /// [`Error::Audio`] for a sample that is not a number.
    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        let audio = Audio::mono(samples.to_vec(), self.sample_rate);
        let mut resampled = Vec::new();
        self.resampler.push(&audio.mean_of_channels()?, &mut resampled);
        self.samples.send(resampled).ok();
        self.engine.wake();
        Ok(())
    }
}

impl Drop for LiveAudio {
    fn drop(&mut self) {
        let mut rest = Vec::new();
        self.resampler.finish(&mut rest);
        self.samples.send(rest).ok();
        // The task sees that the sender is gone after the fields are dropped, and looks again then.
        let (closed, _) = channel();
        self.samples = closed;
        self.engine.wake();
    }
}

struct LiveTask {
    request: LiveRequest,
    inbox: Receiver<Vec<f32>>,
    outlet: UnboundedSender<Result<TranscriptionEvent>>,
    /// The samples that are not settled.
    buffer: Vec<f32>,
    /// The number of samples before them.
    before: usize,
    /// The number of samples that came since the text was written last.
    fresh: usize,
    has_ended: bool,
    running: Option<(Rc<EngineModel>, Box<TranscriptionRun>)>,
    transcript: Transcript,
}

impl LiveTask {
    fn seconds(&self, samples: usize) -> f64 {
        samples as f64 / f64::from(self.request.model_rate)
    }

    /// Takes the samples that have come.
    fn receive(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(samples) => {
                    self.fresh += samples.len();
                    self.buffer.extend(samples);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.has_ended = true;
                    break;
                }
            }
        }
    }

    fn advance(&mut self) -> Result<Turn> {
        if let Some((model, run)) = &mut self.running {
            if model.unloaded.get() {
                return Err(Error::Unloaded);
            }
            let progress = run.advance(&mut model.decode_step())?;
            if let Progress::Finished(transcript) = progress {
                self.running = None;
                self.settle(transcript);
            }
            return Ok(Turn::Ready);
        }
        self.receive();
        if self.has_ended && self.buffer.is_empty() {
            let mut transcript = std::mem::take(&mut self.transcript);
            let segments = transcript.segments.iter().map(|segment| segment.text.trim());
            transcript.text = segments.collect::<Vec<_>>().join(" ");
            self.outlet.send(Ok(TranscriptionEvent::Finished(transcript))).ok();
            return Ok(Turn::Done);
        }
        if !self.has_ended && self.seconds(self.fresh) < EVERY {
            return Ok(Turn::Parked);
        }
        self.fresh = 0;
        let model = find(self.request.model)?;
        let mut options = self.request.options.clone();
        if options.language.is_none() {
            options.language.clone_from(&self.transcript.language);
        }
        let run = TranscriptionRun::new(
            model.transcriber()?.clone(),
            self.request.vocabulary.clone(),
            options,
            Recording::Samples(self.buffer.as_slice().into()),
        )?;
        self.running = Some((model, Box::new(run)));
        Ok(Turn::Ready)
    }

    /// Gives out what is final of a text of the whole buffer, and the rest as partial.
    fn settle(&mut self, transcript: Transcript) {
        let (offset, length) = (self.seconds(self.before), self.seconds(self.buffer.len()));
        let segments = transcript.segments;
        let followed = segments.len().saturating_sub(1);
        let is_settled = |segment: &&Segment| segment.end < length - SETTLED;
        let mut settled = segments[..followed].iter().take_while(is_settled).count();
        let mut end = segments[..settled].last().map_or(0.0, |segment| segment.end);
        if self.has_ended || (settled == 0 && length >= LONGEST) {
            (settled, end) = (segments.len(), length);
        }
        if segments.is_empty() && self.transcript.segments.is_empty() {
            // The language of silence is not that of the speech after it.
            self.transcript.language = None;
        } else {
            self.transcript.language = transcript.language;
        }
        let mut segments: Vec<Segment> =
            segments.into_iter().map(|segment| segment.later(offset)).collect();
        let rest = segments.split_off(settled);
        let cut = (end * f64::from(self.request.model_rate)) as usize;
        let cut = if self.has_ended { self.buffer.len() } else { cut.min(self.buffer.len()) };
        self.buffer.drain(..cut);
        self.before += cut;
        let text: Vec<&str> = rest.iter().map(|segment| segment.text.trim()).collect();
        let partial = TranscriptionEvent::Partial {
            text: text.join(" "),
            start: rest.first().map_or(offset + end, |segment| segment.start),
        };
        if !segments.is_empty() {
            self.transcript.segments.extend_from_slice(&segments);
            for segment in &segments {
                self.transcript.tokens.extend(&segment.tokens);
            }
            let event = TranscriptionEvent::Segments { segments, share: 1.0 };
            self.outlet.send(Ok(event)).ok();
        }
        if !self.has_ended {
            self.outlet.send(Ok(partial)).ok();
        }
    }
}

impl Task for LiveTask {
    fn step(&mut self) -> Turn {
        if self.outlet.is_closed() {
            return Turn::Done;
        }
        self.advance().unwrap_or_else(|error| {
            self.fail(error);
            Turn::Done
        })
    }

    fn is_ending(&self) -> bool {
        self.outlet.is_closed()
    }

    fn fail(&mut self, error: Error) {
        tracing::info!(kind = ?error.kind(), "live transcription failed");
        self.outlet.send(Err(error)).ok();
    }

    /// The text of the buffer is written again from its samples.
    fn distrust(&mut self) {
        self.running = None;
        self.fresh = self.buffer.len();
    }
}
