package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The methods of a call.
const (
	callConfigure = "configure"
	callStart     = "start"
	callWait      = "wait"
	callSignal    = "signal"
	callExec      = "exec"
	callLogs      = "logs"
	callThaw      = "thaw"
	callFreeze    = "freeze"
	callStats     = "stats"
	callShutdown  = "shutdown"
	callPut       = "put"
	callProcesses = "processes"
)

// Error is an error of the guest's side. Its Kind is the text of one of package volant's kinds, so
// that errors.Is(err, volant.ErrNotFound) works on the host without the guest's binary carrying
// that package.
type Error struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

// The kinds a guest uses.
const (
	KindNotFound     = "not found"
	KindInvalid      = "invalid"
	KindPrecondition = "precondition"
)

// Errorf returns an Error of the given kind.
func Errorf(kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

func (e *Error) Error() string { return e.Text }

// Is says whether target is the kind of e.
func (e *Error) Is(target error) bool { return e.Kind != "" && target.Error() == e.Kind }

// A reply is 0 and the answer in JSON, or 1 and an Error.
const (
	replyOK    = 0
	replyError = 1
)

func encodeReply(answer any, err error) []byte {
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{}
		}
		text := err.Error()
		if len(text) > 4096 {
			text = text[:4096]
		}
		return appendJSON([]byte{replyError}, Error{Kind: e.Kind, Text: text})
	}
	return appendJSON([]byte{replyOK}, answer)
}

func appendJSON(b []byte, v any) []byte {
	if v == nil {
		return b
	}
	j, err := json.Marshal(v)
	if err != nil {
		panic("guest: words that are no JSON: " + err.Error()) // only our own types come here
	}
	return append(b, j...)
}

// decodeReply reads what encodeReply made.
func decodeReply(b []byte, answer any) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: empty reply", errProtocol)
	}
	if b[0] != replyOK {
		e := &Error{}
		if err := json.Unmarshal(b[1:], e); err != nil {
			return fmt.Errorf("%w: bad error reply", errProtocol)
		}
		return e
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b[1:], answer); err != nil {
		return fmt.Errorf("%w: bad reply: %w", errProtocol, err)
	}
	return nil
}

// On the wire a log line is: sequence (8) | nanoseconds since 1970 (8) | source (1) | length (4) | text.
const lineHeader = 21

var sources = []string{"init", "stdout", "stderr"}

func appendLine(b []byte, l LogLine) []byte {
	b = binary.BigEndian.AppendUint64(b, l.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Time.UnixNano()))
	src := byte(0)
	for i, s := range sources {
		if s == l.Source {
			src = byte(i)
		}
	}
	b = append(b, src)
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Text)))
	return append(b, l.Text...)
}

// parseLine reads one line off b and returns the rest; ok is false when b has no whole line yet.
func parseLine(b []byte) (l LogLine, rest []byte, ok bool, err error) {
	if len(b) < lineHeader {
		return l, b, false, nil
	}
	n := binary.BigEndian.Uint32(b[17:])
	if n > maxLine || int(b[16]) >= len(sources) {
		return l, b, false, fmt.Errorf("%w: log line of %d bytes", errProtocol, n)
	}
	if len(b) < lineHeader+int(n) {
		return l, b, false, nil
	}
	l = LogLine{
		Seq: binary.BigEndian.Uint64(b), Time: time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))).UTC(),
		Source: sources[b[16]], Text: string(b[lineHeader : lineHeader+int(n)]),
	}
	return l, b[lineHeader+int(n):], true, nil
}
