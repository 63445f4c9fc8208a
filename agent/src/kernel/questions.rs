//! Asks a program that answers questions: the judge without a socket.

use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use trefoil_ebpf::abi::{MAX_QUESTIONS, Question};

use super::{
    KernelError,
    wire::{bytes_of, value_of},
};

/// Bytes that `BPF_PROG_RUN` insists on before the questions.
const LINK_HEADER: usize = 14;

/// The four bytes of each answer, and how long the program ran for all of them.
pub fn ask(
    program: &SchedClassifier,
    questions: &[Question],
) -> Result<(Vec<u32>, Duration), KernelError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        KernelError::failed("run the judge", error)
    };
    let mut answers = Vec::with_capacity(questions.len());
    let mut duration = Duration::ZERO;
    for batch in questions.chunks(MAX_QUESTIONS) {
        let mut packet = vec![0; LINK_HEADER];
        batch
            .iter()
            .for_each(|question| packet.extend_from_slice(bytes_of(question)));
        let mut answered = vec![0; packet.len()];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&packet),
                data_out: Some(&mut answered),
                ..TestRunOptions::default()
            })
            .map_err(|error| failed(error.into()))?;
        if result.return_value as usize != batch.len() {
            let unanswered = format!("{} of {} answered", result.return_value, batch.len());
            return Err(failed(unanswered.into()));
        }
        duration += result.duration;
        answers.extend(
            answered[LINK_HEADER..]
                .chunks_exact(size_of::<Question>())
                .filter_map(value_of::<u32>),
        );
    }
    Ok((answers, duration))
}

/// The answer of the program about a packet of IP.
pub fn judge_packet(program: &SchedClassifier, packet: &[u8]) -> Result<u32, KernelError> {
    let frame = [&[0; LINK_HEADER], packet].concat();
    let run = program.test_run(TestRunOptions {
        data_in: Some(&frame),
        ..TestRunOptions::default()
    });
    let run = run.map_err(|error| KernelError::failed("run the judge of packets", error))?;
    Ok(run.return_value)
}
