/**
 * What the widget says, by language. `{n}` is a number, `{when}` a phrase such as "in 5 minutes", which the browser makes.
 *
 * The server's own sentences are for those who run it and in English; so a failure is told in these, and what the server
 * said goes to the console, for the owner of the page.
 */

const WORDS = {
  en: {
    title: "Ask the documents",
    greeting: "Hello! Ask a question about our documents. Every answer shows where it comes from.",
    placeholder: "Your question…",
    question: "Your question", send: "Send", stop: "Stop", close: "Close", fresh: "New conversation", back: "Back to the conversation",
    conversation: "Conversation", suggestions: "Suggested questions", answer: "Answer", you: "You asked",
    searching: "Searching…", reading: "Reading…", next: "Waiting for another answer: yours is the next…", queued: "Waiting. Your place in the queue: {n}",
    sources: "Sources", source: "Source {n}", page: "page {n}", quote: "What the document says", open: "Download the document",
    refused: "Not in the documents", refusedText: "Nothing in the documents answers this. Try other words, or ask about something else.",
    unsupported: "Not found in the documents",
    withheld: "What the model wrote is not supported by the documents, so it is not shown. Try other words, or ask about something else.",
    closest: "Closest passages", unmatched: "No sentence of this answer could be matched to the documents. Treat it with care.",
    stopped: "Stopped before the end.", cut: "The answer reached its length limit and ends here.",
    retry: "Try again", contact: "Contact us", notice: "Answers come from documents and can be wrong. Check what matters.",
    unreachable: "The assistant cannot be reached. Check your connection, then try again.",
    broken: "The answer broke off. Try again.",
    setup: "The assistant is not set up for this page. Please tell the owner of this site.",
    quota: "That is all for now: the limit of questions is reached. You can ask again {when}.",
    busy: "Many people are asking at this moment. Try again {when}.",
    starting: "The assistant is starting. Your question will be asked as soon as it is ready.",
    long: "The question is too long: at most {n} characters can be asked.",
    invalid: "This cannot be asked. Write the question in plain text.",
    server: "Something went wrong on the server. Try again later.",
  },
  de: {
    title: "Frag die Dokumente",
    greeting: "Hallo! Stellen Sie eine Frage zu unseren Dokumenten. Jede Antwort zeigt, woher sie stammt.",
    placeholder: "Ihre Frage…",
    question: "Ihre Frage", send: "Senden", stop: "Anhalten", close: "Schließen", fresh: "Neues Gespräch", back: "Zurück zum Gespräch",
    conversation: "Gespräch", suggestions: "Vorgeschlagene Fragen", answer: "Antwort", you: "Ihre Frage",
    searching: "Suche läuft…", reading: "Wird gelesen…", next: "Eine andere Antwort läuft noch: Ihre ist die nächste…", queued: "Bitte warten. Ihr Platz in der Schlange: {n}",
    sources: "Quellen", source: "Quelle {n}", page: "Seite {n}", quote: "Was im Dokument steht", open: "Dokument herunterladen",
    refused: "Nicht in den Dokumenten", refusedText: "Die Dokumente beantworten das nicht. Versuchen Sie es mit anderen Worten oder fragen Sie etwas anderes.",
    unsupported: "Nicht in den Dokumenten gefunden",
    withheld: "Was das Modell schrieb, ist durch die Dokumente nicht belegt und wird deshalb nicht gezeigt. Versuchen Sie es mit anderen Worten.",
    closest: "Nächstliegende Stellen", unmatched: "Kein Satz dieser Antwort ließ sich in den Dokumenten wiederfinden. Bitte mit Vorsicht lesen.",
    stopped: "Vor dem Ende angehalten.", cut: "Die Antwort hat ihre größte Länge erreicht und endet hier.",
    retry: "Noch einmal versuchen", contact: "Kontakt", notice: "Antworten stammen aus Dokumenten und können falsch sein. Prüfen Sie, was wichtig ist.",
    unreachable: "Der Assistent ist nicht erreichbar. Prüfen Sie Ihre Verbindung und versuchen Sie es noch einmal.",
    broken: "Die Antwort ist abgebrochen. Versuchen Sie es noch einmal.",
    setup: "Der Assistent ist für diese Seite nicht eingerichtet. Bitte sagen Sie es dem Betreiber der Seite.",
    quota: "Das Limit an Fragen ist erreicht. Sie können {when} wieder fragen.",
    busy: "Im Moment fragen viele. Versuchen Sie es {when} noch einmal.",
    starting: "Der Assistent startet. Ihre Frage wird gestellt, sobald er bereit ist.",
    long: "Die Frage ist zu lang: höchstens {n} Zeichen sind möglich.",
    invalid: "Das kann nicht gefragt werden. Schreiben Sie die Frage als einfachen Text.",
    server: "Auf dem Server ist etwas schiefgegangen. Versuchen Sie es später noch einmal.",
  },
  fr: {
    title: "Interroger les documents",
    greeting: "Bonjour ! Posez une question sur nos documents. Chaque réponse indique d’où elle vient.",
    placeholder: "Votre question…",
    question: "Votre question", send: "Envoyer", stop: "Arrêter", close: "Fermer", fresh: "Nouvelle conversation", back: "Retour à la conversation",
    conversation: "Conversation", suggestions: "Questions proposées", answer: "Réponse", you: "Votre question",
    searching: "Recherche…", reading: "Lecture…", next: "Une autre réponse est en cours : la vôtre est la suivante…", queued: "Veuillez patienter. Votre place dans la file : {n}",
    sources: "Sources", source: "Source {n}", page: "page {n}", quote: "Ce que dit le document", open: "Télécharger le document",
    refused: "Pas dans les documents", refusedText: "Rien dans les documents n’y répond. Essayez d’autres mots, ou une autre question.",
    unsupported: "Introuvable dans les documents",
    withheld: "Ce que le modèle a écrit n’est pas étayé par les documents et n’est donc pas affiché. Essayez d’autres mots.",
    closest: "Passages les plus proches", unmatched: "Aucune phrase de cette réponse n’a été retrouvée dans les documents. À prendre avec prudence.",
    stopped: "Arrêtée avant la fin.", cut: "La réponse a atteint sa longueur maximale et s’arrête ici.",
    retry: "Réessayer", contact: "Nous contacter", notice: "Les réponses viennent de documents et peuvent être fausses. Vérifiez ce qui compte.",
    unreachable: "L’assistant est injoignable. Vérifiez votre connexion, puis réessayez.",
    broken: "La réponse s’est interrompue. Réessayez.",
    setup: "L’assistant n’est pas configuré pour cette page. Merci de le signaler au propriétaire du site.",
    quota: "La limite de questions est atteinte. Vous pourrez en poser {when}.",
    busy: "Beaucoup de questions en ce moment. Réessayez {when}.",
    starting: "L’assistant démarre. Votre question sera posée dès qu’il sera prêt.",
    long: "La question est trop longue : {n} caractères au plus.",
    invalid: "Cela ne peut pas être demandé. Écrivez la question en texte simple.",
    server: "Une erreur s’est produite sur le serveur. Réessayez plus tard.",
  },
  es: {
    title: "Pregunte a los documentos",
    greeting: "¡Hola! Haga una pregunta sobre nuestros documentos. Cada respuesta muestra de dónde viene.",
    placeholder: "Su pregunta…",
    question: "Su pregunta", send: "Enviar", stop: "Detener", close: "Cerrar", fresh: "Nueva conversación", back: "Volver a la conversación",
    conversation: "Conversación", suggestions: "Preguntas sugeridas", answer: "Respuesta", you: "Su pregunta",
    searching: "Buscando…", reading: "Leyendo…", next: "Hay otra respuesta en curso: la suya es la siguiente…", queued: "Espere. Su lugar en la cola: {n}",
    sources: "Fuentes", source: "Fuente {n}", page: "página {n}", quote: "Lo que dice el documento", open: "Descargar el documento",
    refused: "No está en los documentos", refusedText: "Nada en los documentos lo responde. Pruebe con otras palabras o pregunte otra cosa.",
    unsupported: "No se encontró en los documentos",
    withheld: "Lo que escribió el modelo no está respaldado por los documentos y por eso no se muestra. Pruebe con otras palabras.",
    closest: "Pasajes más cercanos", unmatched: "Ninguna frase de esta respuesta se encontró en los documentos. Léala con cautela.",
    stopped: "Detenida antes del final.", cut: "La respuesta alcanzó su longitud máxima y termina aquí.",
    retry: "Reintentar", contact: "Contacto", notice: "Las respuestas vienen de documentos y pueden ser erróneas. Compruebe lo importante.",
    unreachable: "No se puede contactar con el asistente. Compruebe su conexión y reintente.",
    broken: "La respuesta se interrumpió. Reintente.",
    setup: "El asistente no está configurado para esta página. Avise al propietario del sitio.",
    quota: "Se alcanzó el límite de preguntas. Podrá preguntar de nuevo {when}.",
    busy: "Hay muchas preguntas en este momento. Reintente {when}.",
    starting: "El asistente se está iniciando. Su pregunta se hará en cuanto esté listo.",
    long: "La pregunta es demasiado larga: como máximo {n} caracteres.",
    invalid: "Esto no se puede preguntar. Escriba la pregunta en texto sencillo.",
    server: "Algo falló en el servidor. Reintente más tarde.",
  },
  ar: {
    title: "اسأل الوثائق",
    greeting: "مرحبًا! اطرح سؤالًا عن وثائقنا. كل إجابة تُظهر مصدرها.",
    placeholder: "سؤالك…",
    question: "سؤالك", send: "إرسال", stop: "إيقاف", close: "إغلاق", fresh: "محادثة جديدة", back: "العودة إلى المحادثة",
    conversation: "المحادثة", suggestions: "أسئلة مقترحة", answer: "الإجابة", you: "سؤالك",
    searching: "جارٍ البحث…", reading: "جارٍ القراءة…", next: "هناك إجابة أخرى قيد الكتابة، ودورك هو التالي…", queued: "يرجى الانتظار. دورك في الطابور: {n}",
    sources: "المصادر", source: "المصدر {n}", page: "صفحة {n}", quote: "ما تقوله الوثيقة", open: "تنزيل الوثيقة",
    refused: "ليس في الوثائق", refusedText: "لا يوجد في الوثائق ما يجيب عن هذا. جرّب كلمات أخرى أو سؤالًا آخر.",
    unsupported: "غير موجود في الوثائق",
    withheld: "ما كتبه النموذج لا تدعمه الوثائق ولذلك لا يُعرض. جرّب كلمات أخرى.",
    closest: "أقرب المقاطع", unmatched: "لم يُعثر على أي جملة من هذه الإجابة في الوثائق. خذها بحذر.",
    stopped: "أُوقفت قبل نهايتها.", cut: "بلغت الإجابة أقصى طول لها وتنتهي هنا.",
    retry: "حاول مرة أخرى", contact: "اتصل بنا", notice: "الإجابات مأخوذة من وثائق وقد تكون خاطئة. تحقّق مما يهمّك.",
    unreachable: "يتعذّر الوصول إلى المساعد. تحقّق من اتصالك ثم حاول مرة أخرى.",
    broken: "انقطعت الإجابة. حاول مرة أخرى.",
    setup: "المساعد غير مُعدّ لهذه الصفحة. يرجى إبلاغ صاحب الموقع.",
    quota: "بلغت الحد الأقصى للأسئلة. يمكنك السؤال مجددًا {when}.",
    busy: "كثيرون يسألون الآن. حاول مرة أخرى {when}.",
    starting: "المساعد قيد التشغيل. سيُطرح سؤالك حالما يصبح جاهزًا.",
    long: "السؤال طويل جدًا: {n} حرفًا على الأكثر.",
    invalid: "لا يمكن طرح هذا. اكتب السؤال نصًا عاديًا.",
    server: "حدث خطأ في الخادم. حاول لاحقًا.",
  },
};

const RIGHT_TO_LEFT = new Set(["ar"]);

/** The words of the first of these language tags that there are words for, else English: {tag, dir, say(key, values)}. */
export function wordsFor(...tags) {
  const tag = tags.map((one) => (one || "").toLowerCase()).find((one) => WORDS[one.split("-")[0]]) || "en";
  const language = tag.split("-")[0];
  const words = WORDS[language];
  const say = (key, values = {}) => (words[key] ?? words.server).replace(/\{(\w+)\}/g, (_, name) => values[name]);
  return { tag, dir: RIGHT_TO_LEFT.has(language) ? "rtl" : "ltr", say };
}

/** "in 20 seconds", "in 5 minutes", "tomorrow", in that language. `seconds` is rounded up, so that nobody comes too early. */
export function inTime(seconds, tag) {
  const phrase = new Intl.RelativeTimeFormat(tag, { numeric: "auto" });
  const whole = Math.max(1, Math.ceil(seconds));
  if (whole < 90) return phrase.format(whole, "second");
  if (whole < 90 * 60) return phrase.format(Math.ceil(whole / 60), "minute");
  if (whole < 36 * 3600) return phrase.format(Math.ceil(whole / 3600), "hour");
  return phrase.format(Math.ceil(whole / 86400), "day");
}
