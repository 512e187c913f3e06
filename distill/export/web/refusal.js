// What a person can mend, with a message that says what must hold, what was found and what to do.
export class Refusal extends Error {}
