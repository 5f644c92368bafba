package volant

import (
	"slices"
	"time"
)

// Event is one entry of a machine's history, written by its host.
type Event struct {
	ID       string    `json:"id"` // ULID
	Type     string    `json:"type"`
	Status   State     `json:"status"` // the state it brought
	Source   string    `json:"source"` // user, flyd, proxy
	At       time.Time `json:"at"`
	Exit     *Exit     `json:"exit,omitempty"`          // of EventExit
	Again    bool      `json:"restarting,omitempty"`    // of EventExit: the restart policy runs it again
	Restarts int       `json:"restart_count,omitempty"` // of EventExit: those before, within the policy's window
}

// The types of events, by the names that Fly's clients know.
const (
	EventLaunch  = "launch"  // it came to be
	EventStart   = "start"   // it boots
	EventStop    = "stop"    // it is asked to end
	EventExit    = "exit"    // its main process, or its VM, ended
	EventRestart = "restart" // its main process is run again
	EventUpdate  = "update"  // it has a new config
	EventSuspend = "suspend" // it goes to disk
	EventResume  = "resume"  // it comes back from there
	EventDestroy = "destroy" // it goes for good
)

// The sources of events. The words are those Fly's clients know.
const (
	SourceUser  = "user"  // asked for through the API
	SourceHost  = "flyd"  // the platform: the machine's host, scaling, a deploy
	SourceProxy = "proxy" // a connection
)

// MaxEvents bounds the history that is kept of a machine.
const MaxEvents = 50

// Happened returns the history with one more event in it, the newest last. The old one is left as it is.
func Happened(history []Event, e Event) []Event {
	if drop := len(history) + 1 - MaxEvents; drop > 0 {
		history = history[drop:]
	}
	return append(slices.Clip(history), e)
}
