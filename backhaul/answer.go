package backhaul

import "encoding/binary"

// Code is how a host answers a request.
type Code uint8

// The codes.
const (
	OK           Code = 1 + iota // the bytes that follow are the machine's
	Busy                         // no slot is free, and the request did not want to wait
	Refused                      // by the rule
	WrongEpoch                   // the request is for, or from, an earlier boot
	Seen                         // a request with this number was taken before
	Gone                         // the host has no such machine, or knows no such app
	OtherVersion                 // it speaks another version of the protocol
	codesEnd
)

var codeNames = [...]string{"none", "ok", "busy", "refused", "wrong_epoch", "seen", "gone", "other_version"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "unknown"
}

// Answer is a host's answer to a request. Its first 12 bytes, up to the epoch, are the same in all versions.
type Answer struct {
	Code  Code
	Rule  uint8  // by which the host's proxy placed or refused it; 0 for none
	Epoch uint64 // boot epoch of the host's proxy
	// Seq orders what is said of slots within the epoch, and Slots is how many of Machine's port are held after this.
	Seq     uint64
	Slots   uint32
	Machine Machine // that was chosen, or that is busy; zero if none
}

// AppendAnswer appends the frame of a to dst.
func AppendAnswer(dst []byte, a *Answer) []byte {
	dst = append(dst, Version, byte(a.Code), a.Rule, 0)
	dst = binary.BigEndian.AppendUint64(dst, a.Epoch)
	dst = binary.BigEndian.AppendUint64(dst, a.Seq)
	dst = binary.BigEndian.AppendUint32(dst, a.Slots)
	dst = append(dst, a.Machine[:]...)
	return append(dst, 0)
}

// ParseAnswer reads a frame of AnswerLen bytes.
func ParseAnswer(b []byte, a *Answer) error {
	if len(b) < AnswerLen {
		return ErrMalformed
	}
	if b[0] != Version {
		*a = Answer{Code: OtherVersion, Epoch: binary.BigEndian.Uint64(b[4:])}
		return nil
	}
	if b[1] == 0 || Code(b[1]) >= codesEnd || b[3] != 0 || b[31] != 0 {
		return ErrMalformed
	}
	*a = Answer{
		Code: Code(b[1]), Rule: b[2], Epoch: binary.BigEndian.Uint64(b[4:]), Seq: binary.BigEndian.Uint64(b[12:]),
		Slots: binary.BigEndian.Uint32(b[20:]), Machine: Machine(b[24:31]),
	}
	return nil
}
