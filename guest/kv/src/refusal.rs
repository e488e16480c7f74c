//! Why a command was not carried out, in the words that clients of Redis know.

/// An error reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    #[error("ERR value is out of range, must be positive")]
    NotPositive,
    #[error("ERR value is out of range")]
    OutOfRange,
    #[error("ERR value is not a valid float")]
    NotFloat,
    #[error("ERR hash value is not an integer")]
    HashNotInteger,
    #[error("ERR hash value is not a float")]
    HashNotFloat,
    #[error("ERR min or max is not a float")]
    RangeNotFloat,
    #[error("ERR min or max not valid string range item")]
    RangeNotString,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    #[error("ERR increment would produce NaN or Infinity")]
    NotFinite,
    #[error("ERR value is NaN or Infinity")]
    Infinite,
    #[error("ERR resulting score is not a number (NaN)")]
    ScoreNan,
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR no such key")]
    NoKey,
    #[error("ERR index out of range")]
    IndexRange,
    #[error("ERR offset is out of range")]
    Offset,
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(&'static str),
    #[error("ERR invalid cursor")]
    Cursor,
    #[error("ERR DB index is out of range")]
    Database,
    #[error("ERR source and destination objects are the same")]
    SameObject,
    #[error("ERR XX and NX options at the same time are not compatible")]
    NxAndXx,
    #[error("ERR GT, LT, and/or NX options at the same time are not compatible")]
    GtLtNx,
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    NxAndOthers,
    #[error("ERR GT and LT options at the same time are not compatible")]
    GtAndLt,
    #[error("ERR INCR option supports a single increment-element pair")]
    IncrOne,
    #[error("ERR numkeys should be greater than 0")]
    NumKeys,
    #[error("ERR Number of keys can't be greater than number of args")]
    NumKeysTooMany,
    #[error("ERR LIMIT can't be negative")]
    LimitNegative,
    #[error("ERR COUNT can't be negative")]
    CountNegative,
    #[error("ERR MAXLEN can't be negative")]
    MaxlenNegative,
    #[error(
        "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use negative to start from the end of the list"
    )]
    RankZero,
    #[error("ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX")]
    LimitAlone,
    #[error("ERR syntax error, WITHSCORES not supported in combination with BYLEX")]
    WithScoresByLex,
    #[error("ERR MULTI calls can not be nested")]
    NestedMulti,
    #[error("ERR {0} without MULTI")]
    WithoutMulti(&'static str),
    #[error("ERR WATCH inside MULTI is not allowed")]
    WatchInMulti,
    #[error("EXECABORT Transaction discarded because of previous errors.")]
    ExecAbort,
    #[error("EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command")]
    ExecArity,
    #[error("EXECABORT Transaction discarded because of: command not allowed when used memory > 'maxmemory'.")]
    ExecMemory,
    #[error("ERR Command not allowed inside a transaction")]
    NotInMulti,
    #[error("OOM command not allowed when used memory > 'maxmemory'.")]
    OutOfMemory,
    #[error("MISCONF Errors writing to the AOF file: No space left on device")]
    LogFull,
    #[error("MISCONF Errors writing to the AOF file: Input/output error")]
    LogFailed,
    #[error(
        "EXECABORT Transaction discarded because of: MISCONF Errors writing to the AOF file: No space left on device"
    )]
    ExecLogFull,
    #[error("EXECABORT Transaction discarded because of: MISCONF Errors writing to the AOF file: Input/output error")]
    ExecLogFailed,
    #[error("NOPROTO unsupported protocol version")]
    Protocol,
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolNumber,
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
    #[error("ERR No such client")]
    NoClient,
    #[error("ERR Invalid client ID")]
    ClientId,
    #[error("ERR Invalid command specified")]
    NoCommand,
    #[error("ERR The command has no key arguments")]
    NoKeyArguments,
    #[error("ERR Client sent AUTH, but no password is set. Did you mean AUTH <username> <password>?")]
    NoPassword,
    #[error("WRONGPASS invalid username-password pair or user is disabled.")]
    WrongPassword,
    #[error("ERR The server is running without a config file")]
    NoConfigFile,
    #[error("ERR Invalid number of arguments specified for command")]
    CommandArity,
    #[error("ERR reply of more than {0} bytes")]
    Reply(usize),
    /// The reply has been written; said by those who put the client's words into it.
    #[error("")]
    Said,
}
