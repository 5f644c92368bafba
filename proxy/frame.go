package proxy

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// The control protocol: frames of four bytes of length, most significant first, and that many bytes of JSON.
const (
	protocol  = 1
	frameMost = 64 << 20
)

// frame is one message. A request has ID and Op; its answer the same ID and Body or Error; an event has
// Event and Body.
type frame struct {
	V     int               `json:"v"`
	ID    uint64            `json:"id,omitempty"`
	Op    string            `json:"op,omitempty"`
	Event string            `json:"event,omitempty"`
	Body  json.RawMessage   `json:"body,omitempty"`
	Error *volant.WireError `json:"error,omitempty"`
}

// The operations and events.
const (
	opHello    = "hello"
	opSetTable = "set_table"
	opSeal     = "seal"
	opSlots    = "slots"
	opQuery    = "query"
	opPicture  = "picture"
	opNumbers  = "numbers"
	opWatch    = "watch"
	opTell     = "tell"
	opShutdown = "shutdown"

	eventLoad  = "load"
	eventWake  = "wake"
	eventWhy   = "why"
	eventFacts = "facts"
	eventPeer  = "peer"
)

type sealRequest struct {
	Machine volant.MachineID `json:"machine"`
	Seq     uint64           `json:"seq"`
}

type tellRequest struct {
	All   live.Kinds  `json:"all,omitempty"` // there are no other facts of these kinds
	Facts []live.Fact `json:"facts"`
}

// writeFrame writes one message in one piece.
func writeFrame(w io.Writer, f frame) error {
	f.V = protocol
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(b) > frameMost {
		return volant.Invalidf("control message of %d bytes: at most %d are allowed", len(b), frameMost)
	}
	out := make([]byte, 4, 4+len(b))
	binary.BigEndian.PutUint32(out, uint32(len(b)))
	_, err = w.Write(append(out, b...))
	return err
}

// readFrame reads one message. It never holds more memory than has arrived, rounded up.
func readFrame(r io.Reader) (frame, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > frameMost {
		return frame{}, volant.Invalidf("control message of %d bytes: at most %d are allowed", n, frameMost)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return frame{}, err
	}
	if len(b) < int(n) {
		return frame{}, io.ErrUnexpectedEOF
	}
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return frame{}, volant.Invalidf("control message: %v", err)
	}
	if f.V != protocol {
		return frame{}, volant.Invalidf("control message of protocol %d: this binary speaks %d", f.V, protocol).
			WithRemedy("run server and proxy of the same release")
	}
	return f, nil
}

func marshal(v any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	return b, nil
}

func unmarshal(b json.RawMessage, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return volant.Invalidf("control message: %v", err)
	}
	return nil
}
